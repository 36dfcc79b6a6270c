"""Coupled groups, plans, and the maps derived from them without surgery."""

from __future__ import annotations

import copy

import pytest
import torch
import torch_pruning as tp
from cutting import assert_describes, cut, graph, masked
from hypothesis import given, settings
from hypothesis import strategies as st
from networks.small import CONVOLUTIONAL, conv_bn, images, net
from torch import nn

from hfp.reconstruct import Coupling, MapError, Plan, compact_model, record

TRACED = {}


def traced(name):
    """Models and groups by name; tracing is what takes time here."""
    if name not in TRACED:
        model = net(name)
        TRACED[name] = model, Coupling.trace(model, images(), ignored_layers=["head"])
    return TRACED[name]


@st.composite
def plans(draw, groups):
    """Random plans; some groups are left out."""
    kept = {}
    for name, size in groups.sizes.items():
        chosen = draw(st.none() | st.sets(st.integers(0, size - 1), min_size=1))
        if chosen is not None:
            kept[name] = sorted(chosen)
    return groups.plan(kept)


@pytest.mark.parametrize("name", CONVOLUTIONAL)
@settings(max_examples=15)
@given(data=st.data())
def test_a_plan_gives_the_map_of_the_surgery_it_stands_for(name, data):
    full, groups = traced(name)
    plan = data.draw(plans(groups))
    index_map = groups.index_map(plan)
    pruned = copy.deepcopy(full)
    rows = {root: index_map.tensors[f"{root}.weight"].kept[0] for root in groups.names}
    with record(pruned, images()) as recording:
        cut(pruned, {root: kept for root, kept in rows.items() if kept is not None})
    assert index_map == recording.index_map
    assert_describes(index_map, full, pruned)
    assert torch.equal(compact_model(full, index_map)(images()), pruned(images()))


@pytest.mark.parametrize("name", CONVOLUTIONAL)
@settings(max_examples=15)
@given(data=st.data())
def test_the_compact_model_equals_the_masked_full_one(name, data):
    """Coupled channels are aligned: whatever is removed, no kept path sees it."""
    full, groups = traced(name)
    index_map = groups.index_map(data.draw(plans(groups)))
    compact = compact_model(full, index_map)
    torch.testing.assert_close(compact(images(4)), masked(full, index_map)(images(4)), rtol=1e-5, atol=1e-6)


def test_the_comparison_with_the_masked_model_sees_a_misaligned_channel():
    full, groups = traced("resnet")
    index_map = groups.index_map(groups.plan({"stem.0": [0, 1, 2, 3]}))
    other = groups.index_map(groups.plan({"stem.0": [0, 1, 2, 4]}))
    compact = compact_model(full, index_map)
    with pytest.raises(AssertionError, match="not close"):
        torch.testing.assert_close(compact(images(4)), masked(full, other)(images(4)), rtol=1e-5, atol=1e-6)


def test_names_and_sizes():
    """A channel is what goes together: where a convolution reads in groups, a whole group of it."""
    assert dict(traced("grouped")[1].sizes) == {"stem.0": 4, "normed.0": 4}
    assert dict(traced("resnet")[1].sizes) == {
        "stem.0": 8, "blocks.0.body.0.0": 8, "blocks.1.body.0.0": 12, "blocks.1.body.1": 12, "blocks.2.body.0.0": 12,
    }  # fmt: skip


class Unfolded(nn.Module):
    """A vector read as channels of an image: four of its entries make a channel."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.point = nn.Linear(192, 24), conv_bn(6, 8, kernel=1)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.enter(x.flatten(1)).relu()
        return self.head(self.point(x.view(x.shape[0], -1, 2, 2)).mean((2, 3)))


def test_entries_that_make_one_channel_go_together():
    full = Unfolded().eval()
    groups = Coupling.trace(full, images(), ["head"])
    assert groups.sizes["enter"] == 6
    index_map = groups.index_map(groups.plan({"enter": [1, 4]}))
    assert index_map.tensors["enter.weight"].kept[0].tolist() == [4, 5, 6, 7, 16, 17, 18, 19]
    assert index_map.tensors["point.0.weight"].kept[1].tolist() == [1, 4]
    torch.testing.assert_close(compact_model(full, index_map)(images()), masked(full, index_map)(images()))


class Swapped(nn.Module):
    """A sum of channels with others of the same layer; torch-pruning's walk over it does not end."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.point, self.last = conv_bn(3, 8), conv_bn(8, 8, kernel=1), conv_bn(8, 6, kernel=1)
        self.head = nn.Linear(6, 5)

    def forward(self, x):
        x = self.stem(x)
        swapped = torch.cat(x.chunk(2, 1)[::-1], 1)
        return self.head(self.last(self.point(x + swapped)).mean((2, 3)))


def test_channels_that_are_summed_with_each_other_go_together():
    full = Swapped().eval()
    groups = Coupling.trace(full, images(), ["head"])
    assert dict(groups.sizes) == {"stem.0": 4, "point.0": 8, "last.0": 6}
    index_map = groups.index_map(groups.plan({"stem.0": [0, 3]}))
    assert index_map.tensors["stem.0.weight"].kept[0].tolist() == [0, 3, 4, 7]
    torch.testing.assert_close(compact_model(full, index_map)(images()), masked(full, index_map)(images()))


class TiedPair(nn.Module):
    """Two layers with one weight, whose outputs are pruned in different groups."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.between, self.second = nn.Linear(192, 6), nn.Linear(6, 192), nn.Linear(192, 6)
        self.second.weight = self.first.weight
        self.head = nn.Linear(6, 5)

    def forward(self, x):
        return self.head(self.second(self.between(self.first(x.flatten(1)).relu())).relu())


def test_layers_that_share_a_weight_lose_the_same_channels():
    groups = Coupling.trace(TiedPair().eval(), images(), ["head", "between"])
    assert groups.names == ("first",)
    index_map = groups.index_map(groups.plan({"first": [0, 2]}))
    assert index_map.tensors["first.weight"] == index_map.tensors["second.weight"]


def test_a_frozen_model_and_a_batch_of_one_are_traced_all_the_same():
    model = net("vgg").requires_grad_(False)
    groups = Coupling.trace(model, images(1), ["head"])
    assert dict(groups.sizes) == dict(traced("vgg")[1].sizes)
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("name", ["resnet", "grouped", "vit"])
def test_maps_need_no_weights(name):
    _, groups = traced(name)
    weightless = Coupling.trace(net(name).to("meta"), images().to("meta"), ["head"])
    plan = groups.plan(dict.fromkeys(groups.names, [0]))
    assert weightless.index_map(plan) == groups.index_map(plan)


def test_tracing_changes_nothing_of_the_callers():
    model = net("resnet").train()
    model.stem[1].weight.requires_grad_(False)
    before = copy.deepcopy(model)
    Coupling.trace(model, images(), [model.head])
    assert model.training
    assert [p.requires_grad for p in model.parameters()] == [p.requires_grad for p in before.parameters()]
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), before.state_dict().values(), strict=True)
    )


def test_groups_are_what_criteria_take():
    model, groups = traced("resnet")
    scores = tp.importance.MagnitudeImportance()(groups.groups_of(model)("stem.0"))
    expected = tp.importance.MagnitudeImportance()(
        next(g for g in graph(model).get_all_groups() if g[0].dep.target.module is model.stem[0])
    )
    torch.testing.assert_close(scores, expected)
    with pytest.raises(MapError, match=r"no coupled group is called 'stem'; there are stem\.0,"):
        groups.plan({"stem": [0]})


def test_ignored_layers_by_module_or_name():
    model = net("vgg")
    by_module = Coupling.trace(model, images(), [model.head, model.features[0]])
    by_name = Coupling.trace(model, images(), ["head", "features.0"])
    assert by_module.names == by_name.names == ("features.2.0", "hidden")
    with pytest.raises(MapError, match="ignored layer 'fc' is not in the model"):
        Coupling.trace(model, images(), ["fc"])
    with pytest.raises(MapError, match="ignored layer Linear.* is not in the model"):
        Coupling.trace(model, images(), [nn.Linear(1, 1)])


def test_a_model_with_nothing_to_prune_is_refused():
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 5))
    with pytest.raises(MapError, match="no layer of this model can be pruned"):
        Coupling.trace(model, images(), ["1"]).verified(model, images())


def test_inputs_that_the_model_does_not_take_are_refused():
    with pytest.raises(MapError, match="does not run on the example inputs"):
        Coupling.trace(net("vgg"), torch.zeros(2, 1, 8, 8), ["head"])


def test_plans_of_other_groups_are_refused():
    _, groups = traced("vgg")
    with pytest.raises(MapError, match="made for other coupled groups"):
        groups.index_map(Plan({"stem": 4}, {}))


class Joint(nn.Module):
    """Each of two branches can lose all of its channels in the sum's consumer; both together can't."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = conv_bn(3, 2), conv_bn(3, 2)
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        return self.head(torch.cat([self.first(x), self.second(x)], 1).mean((2, 3)))


def test_plans_are_in_the_numbering_of_the_full_model():
    groups = Coupling.trace(Joint().eval(), images(), ["head"])
    index_map = groups.index_map(groups.plan({"first.0": [1], "second.0": [0]}))
    assert index_map.tensors["head.weight"].kept[1].tolist() == [1, 2]


@given(st.dictionaries(st.sampled_from(["a", "b"]), st.sets(st.integers(0, 3), min_size=1)))
def test_a_plan_counts_what_it_removes(kept):
    plan = Plan({"a": 4, "b": 4}, {name: tuple(sorted(channels)) for name, channels in kept.items()})
    assert {name: set(channels) for name, channels in plan.kept.items()} == {
        "a": set(range(4)),
        "b": set(range(4)),
        **kept,
    }
    assert plan.ratio == pytest.approx(1 - sum(len(kept.get(name, range(4))) for name in "ab") / 8)


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        ({"c": (0,)}, "no coupled group is called 'c'"),
        ({"a": ()}, "a: no channel is kept; keep at least one of 4"),
        ({"a": (0, 4)}, r"a: expected ascending channels without repeats in \[0, 4\)"),
        ({"a": (-1, 0)}, r"a: expected ascending"),
        ({"a": (1, 0)}, r"a: expected ascending"),
        ({"a": (1, 1)}, r"a: expected ascending"),
    ],
)
def test_wrong_plans_are_refused(kept, message):
    with pytest.raises(MapError, match=message):
        Plan({"a": 4, "b": 2}, kept)


def test_plans_can_not_be_changed():
    plan = Plan({"a": 4}, {"a": (0,)})
    with pytest.raises(TypeError, match="does not support item assignment"):
        plan.kept["a"] = (1,)


@pytest.mark.parametrize(
    "kept", [(0.5, 1.7), "ab", None, (False, True), torch.tensor([True, False]), list(torch.tensor([False, True]))]
)
def test_channels_that_are_no_numbers_are_refused(kept):
    with pytest.raises(MapError, match="a: expected the numbers of channels, found"):
        Plan({"a": 4}, {"a": kept})


def test_names_that_the_model_does_not_have_are_refused():
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    coupling = Coupling.trace(model, torch.randn(2, 4))
    for use in (coupling.groups_of(model), coupling.members, coupling.ties, coupling.widths):
        with pytest.raises(MapError, match="no coupled group is called '1'; there are '0'"):
            use("1")
    with pytest.raises(MapError, match="has no tensor '0.wieght'; did you mean 0.weight"):
        coupling.reason("0.wieght", 0)
    with pytest.raises(MapError, match="has no tensor 'none'"):
        Coupling.trace(model, torch.randn(2, 4), whole_tensors={"none": "it stays"})
    with pytest.raises(MapError, match="this Linear has other parameters or shapes than the model that was traced"):
        coupling.groups_of(nn.Linear(4, 6))


def test_tracing_recurrent_layers_draws_nothing_of_the_callers():
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.head = nn.GRU(4, 6, batch_first=True), nn.Linear(6, 3)

        def forward(self, x):
            return self.head(nn.functional.dropout(self.layer(x)[0], 0.5, training=True))

    model, x = Noisy(), torch.randn(2, 3, 4)
    before = torch.get_rng_state()
    Coupling.trace(model, x)
    assert torch.equal(torch.get_rng_state(), before)
