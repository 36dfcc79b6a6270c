"""Scores per multiply-accumulate, and relative to the group's own."""

import copy

import pytest
import torch
from networks.criteria import data, groups, make
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from hfp.importance import CriterionError, ScaledImportance, create


def macs(model, images):
    with FlopCounterMode(display=False) as counter:
        model(images)
    return counter.get_total_flops() / 2 / len(images)


@pytest.mark.parametrize("name", ["residual", "flat"])
def test_macs_of_a_channel_are_what_its_removal_saves(name):
    model, images = make(name), torch.zeros(2, 3, 8, 8, dtype=torch.float64)
    scaled = ScaledImportance(create("l1"), power=1.0)
    scaled.measure(model, images)
    for root, group in groups(model).items():
        pruned = copy.deepcopy(model)
        groups(pruned)[root].prune([1])
        saved = macs(model, images) - macs(pruned, images)
        both = {item.dep.target.name for item in group}
        twice = scaled._positions["side"] if root == "side" and both else 0.0
        assert scaled.macs(group)[1].item() - twice == pytest.approx(saved)


class Keywords(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.up = torch.nn.ConvTranspose1d(3, 4, 2)

    def forward(self, x):
        return self.up(input=x)


def test_layers_that_are_called_with_keywords_are_measured():
    scaled = ScaledImportance(create("l1"), power=1.0)
    scaled.measure(Keywords(), torch.zeros(2, 3, 5))
    assert scaled._positions == {"up": 5.0}


class Tokens(torch.nn.Module):
    """Reads tokens in the layout that its layers are given: samples first, tokens first, or all in one dimension."""

    def __init__(self, layout):
        super().__init__()
        self.first, self.second, self.layout = torch.nn.Linear(4, 6), torch.nn.Linear(6, 3), layout

    def forward(self, x):
        laid = {"samples": x, "tokens": x.transpose(0, 1), "flat": x.flatten(0, 1)}[self.layout]
        return self.second(self.first(laid).relu()).sum()


@pytest.mark.parametrize("layout", ["samples", "tokens", "flat"])
def test_macs_are_those_of_one_sample_whatever_the_layout(layout):
    scaled = ScaledImportance(create("l1"), power=1.0)
    scaled.measure(Tokens(layout), torch.zeros(2, 10, 4))
    assert scaled._positions == {"first": 10.0, "second": 10.0}


def test_a_power_that_is_no_number_and_a_layer_that_never_ran_are_refused():
    with pytest.raises(CriterionError, match="power is a finite number, not 'half'"):
        ScaledImportance(create("l1"), power="half")
    scaled, model = ScaledImportance(create("l1"), power=1.0), make("residual")
    scaled.measure(Tokens("flat"), torch.zeros(2, 10, 4))
    with pytest.raises(CriterionError, match=r"never ran by itself in measure\(\)"):
        scaled(groups(model)["side"])


def test_scores_are_divided_by_a_power_of_the_macs():
    model, images = make("residual"), torch.zeros(2, 3, 8, 8, dtype=torch.float64)
    group = groups(model)["side"]
    plain = create("l1")(group)
    for power in (0.5, 1.0):
        scaled = ScaledImportance(create("l1"), power=power)
        scaled.measure(model, (images,))
        torch.testing.assert_close(scaled(group), plain / scaled.macs(group).float() ** power)


@pytest.mark.parametrize("normalise", ["mean", "max", "sum"])
def test_scores_are_relative_to_the_group(normalise):
    group = groups(make("residual"))["side"]
    inner = create("l2", normalizer=None)
    found = ScaledImportance(inner, normalise=normalise)(group)
    assert getattr(found, normalise)().item() == pytest.approx(1)
    torch.testing.assert_close(found.argsort(), inner(group).argsort())


def test_measuring_leaves_the_model_alone_and_refusals_say_what_to_do():
    model = make("residual").train()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    scaled = ScaledImportance(create("l1"), power=1.0)
    group = groups(model.eval())["side"]
    model.train()
    with pytest.raises(CriterionError, match=r"call measure\(model, example_inputs\)"):
        scaled(group)
    scaled.measure(model, {"x": torch.ones(2, 3, 8, 8, dtype=torch.float64)})
    assert model.training
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
    with pytest.raises(CriterionError, match="normalise is one of"):
        ScaledImportance(create("l1"), normalise="median")
    zero = ScaledImportance(lambda group: torch.zeros(6), normalise="sum")
    with pytest.raises(CriterionError, match="sum of the scores of 'side' is 0.0: not positive"):
        zero(group)


def test_a_scaled_criterion_is_accumulated_and_made_by_name():
    model, batch = make("residual"), data()
    group = groups(model)["side"]
    scaled, plain = create("group-fisher", normalise="mean"), create("group-fisher")
    assert isinstance(scaled, ScaledImportance)
    for criterion in (scaled, plain):
        criterion.accumulate(model, [batch], functional.cross_entropy)
    torch.testing.assert_close(scaled(group), plain(group) / plain(group).mean())
    assert scaled.samples == 6
    scaled.reset()
    assert scaled.samples == 0
    assert not hasattr(create("l1", normalise="max"), "accumulate")
    assert isinstance(copy.deepcopy(scaled), ScaledImportance)


def test_scaled_criteria_merge_as_the_inner_ones():
    model, (images, labels) = make("residual"), data()
    whole, half, other = (create("group-fisher", normalise="mean") for _ in range(3))
    for criterion, part in ((whole, slice(0, 6)), (half, slice(0, 2)), (other, slice(2, 6))):
        criterion.accumulate(model, [(images[part], labels[part])], functional.cross_entropy)
    half.merge(other)
    group = groups(model)["side"]
    torch.testing.assert_close(half(group), whole(group), rtol=1e-10, atol=1e-14)
    half.merge(other.inner)
    assert half.samples == 10
    with pytest.raises(CriterionError, match="ShippedImportance accumulates nothing that could be merged"):
        create("l1", normalise="mean").merge(half)


def test_a_layer_that_is_given_no_rows_costs_nothing():
    layer = torch.nn.Linear(4, 2)
    scaled = ScaledImportance(create("l1"), power=1.0)
    scaled.measure(layer, torch.zeros(0, 4))
    assert scaled._positions == {"": 0.0}
