"""The ranking from measured losses: its prices, and what they make of a model."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.parametrizations import weight_norm

import hfp
from hfp.costs.macs import macs, parameters
from hfp.errors import InputError
from hfp.pruning.measuring import mean_loss, measured, prices, samples_for, tried
from hfp.pruning.schedule import Bundle, Order, RankingRules


def test_prices_are_the_slopes_of_the_lower_hull():
    found = prices([(2, 2.0, 1.0), (4, 4.0, 8.0), (6, 6.0, 9.0)], 6)  # the hull leaves the point at 4 out
    assert found == pytest.approx([0.5, 0.75, 1.25, 1.75, 2.0, 2.0])


@given(st.lists(st.tuples(st.floats(0.01, 5), st.floats(-3, 3)), min_size=1, max_size=6), st.integers(1, 40))
def test_prices_ascend_strictly(increments, width):
    sums = list(itertools.accumulate(increments, lambda a, b: (a[0] + b[0], a[1] + b[1])))
    points = [(width * place, *pair) for place, pair in enumerate(sums, start=1)]
    found = prices(points, width * len(points))
    assert len(found) == width * len(points)
    assert all(before < after for before, after in itertools.pairwise(found)) or max(map(abs, found)) < 1e-6


def test_losses_that_are_not_finite_are_left_out():
    assert prices([(1, 1.0, 0.5), (2, 2.0, float("nan")), (3, 3.0, float("inf"))], 3)[0] == pytest.approx(0.5)
    assert prices([(1, 1.0, float("inf"))], 2) == [float("inf")] * 2


def test_levels_are_tried_once_each():
    assert tried(range(9)) == [2, 4, 6, 7, 8]
    assert tried(range(2)) == [1]
    assert tried([0]) == []
    assert tried([0, 4, 8]) == [4, 8]  # what rounding allows


@given(st.permutations(range(12)))
def test_channels_keep_their_order(order):
    scores = {"a": torch.tensor(order, dtype=torch.float32), "b": torch.tensor(order[::-1]).repeat_interleave(2)}
    bundle = Bundle(scores, {"a": (1,), "b": (1,)})
    priced = bundle.with_order([place**2 / 7 for place in range(bundle.steps)])
    for cut in range(bundle.steps):
        assert priced.kept(cut) == bundle.kept(cut)


@pytest.mark.parametrize(("removals", "gone"), [(5, [4, 1]), (10, [8, 2]), (12, [8, 4])])
def test_what_costs_least_for_what_it_saves_goes_first(removals, gone):
    """Two groups whose losses are n² and 4n²: the optimum takes four channels of the first for one of the second."""
    bundles = [Bundle({name: torch.arange(8.0)}, {name: (1,)}) for name in "ab"]

    def taken(kept):
        return [8 - len(kept.get(name, range(8))) for name in "ab"]

    def outcome(kept):
        first, second = taken(kept)
        return -float(first + second), float(first**2 + 4 * second**2)

    order = Order.of(measured(bundles, RankingRules("measured"), outcome), RankingRules("measured"))
    found = taken(order.kept(removals))
    assert sum(found) == sum(gone)
    assert found == pytest.approx(gone, abs=1)


class TwoBranches(nn.Module):
    """Two hidden layers side by side; the second one's outputs hardly count."""

    def __init__(self) -> None:
        super().__init__()
        self.useful, self.idle = nn.Linear(6, 64), nn.Linear(6, 64)
        self.norm = nn.BatchNorm1d(64)
        self.head, self.other = nn.Linear(64, 3), nn.Linear(64, 3)
        nn.init.normal_(self.other.weight, std=1e-4)
        nn.init.normal_(self.head.weight, std=0.25)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.useful(x)).relu()) + self.other(self.idle(x).relu())


def network_and_data() -> tuple[nn.Module, list[tuple[torch.Tensor, torch.Tensor]]]:
    torch.manual_seed(0)
    model, images = TwoBranches(), torch.randn(64, 6)
    with torch.no_grad():
        labels = model.eval()(images).argmax(1)
    return model, [(images[:32], labels[:32]), (images[32:], labels[32:])]


@pytest.mark.parametrize("kind", ["macs", "params", "bytes", "ratio"])
def test_the_group_that_does_not_count_is_emptied_first(kind):
    model, data = network_and_data()
    budget = hfp.Budget(ratio=0.4) if kind == "ratio" else hfp.Budget(**{kind: 0.6})
    found = hfp.prune(
        model, data[0][0], budget, importance="l2", data=data, loss_fn=cross_entropy, ranking="measured"
    ).model
    assert found.useful.out_features >= found.idle.out_features + 20


@pytest.mark.parametrize("form", [nn.utils.weight_norm, weight_norm])
@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
def test_weights_that_are_computed_cost_as_much_as_others(form):
    model, data = network_and_data()
    for layer in (model.idle, model.other):
        form(layer)
    found = hfp.prune(
        model, data[0][0], hfp.Budget(macs=0.6), data=data, loss_fn=cross_entropy, ranking="measured", repair=None
    ).model
    assert found.useful.out_features >= found.idle.out_features + 20


def test_a_loss_that_is_not_finite_is_refused():
    model, data = network_and_data()
    with pytest.raises(InputError, match="the loss of the full model is nan .*check loss_fn, the data and the weights"):
        hfp.prune(
            model, data[0][0], hfp.Budget(macs=0.6), data=data, loss_fn=lambda *_: torch.tensor(torch.nan),
            ranking="measured",
        )  # fmt: skip


def test_the_caller_s_model_stays_as_it_was_and_the_budget_is_met():
    model, data = network_and_data()
    model.train()
    before = copy.deepcopy(model.state_dict())
    result = hfp.prune(
        model, data[0][0], hfp.Budget(macs=0.5), importance="group-fisher", data=data, loss_fn=cross_entropy,
        ranking="measured", steps=2,
    )  # fmt: skip
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert model.training and result.model.training
    assert 0.49 <= macs(result.model, data[0][0]) / macs(model, data[0][0]) <= 0.5
    assert parameters(result.model) < parameters(model)


def blocks(count: int) -> nn.Module:
    """A chain of depthwise and pointwise convolutions, as mobile networks have them, that counts what it is run on."""

    class Counting(nn.Sequential):
        passes = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if len(x) > 2:  # data, not the two samples that the structure is followed with
                Counting.passes += len(x) * (1 + torch.is_grad_enabled())
            return super().forward(x)

    layers: list[nn.Module] = [nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()]
    for _ in range(count):
        layers += [nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.BatchNorm2d(8), nn.ReLU()]
        layers += [nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU()]
    return Counting(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))


@pytest.mark.parametrize(("importance", "batch", "groups"), [("group-fisher", 250, 24), ("kronecker", 50, 12)])
def test_a_criterion_and_measured_losses_take_at_most_twenty_passes_of_a_thousand_samples(importance, batch, groups):
    torch.manual_seed(0)
    model, images, labels = blocks(groups - 1), torch.randn(1000, 1, 4, 4), torch.randint(4, (1000,))
    data = list(zip(images.split(batch), labels.split(batch), strict=True))
    hfp.prune(
        model, images[:2], hfp.Budget(macs=0.6), importance=importance, data=data, loss_fn=cross_entropy,
        ranking="measured", repair=None,
    )  # fmt: skip
    assert 1000 < type(model).passes <= 20 * 1000


@given(st.lists(st.integers(1, 300), min_size=1, max_size=8), st.integers(1, 600))
def test_losses_are_measured_on_the_first_samples_and_no_small_rest_of_a_batch(sizes, losses):
    batches = [(torch.arange(size), torch.arange(size), torch.tensor(1.0)) for size in sizes]
    found = samples_for(batches, losses)
    sizes = [size for place, size in enumerate(sizes) if size > 1 or max(sizes[:place], default=1) == 1]
    taken, most = [len(inputs) for inputs, *_ in found], min(256, max(32, 15_000 // losses))
    assert all(len(inputs) == len(targets) for inputs, targets, _ in found)
    assert taken[:-1] == sizes[: len(taken) - 1]
    assert most - 32 < sum(taken) <= most or taken == sizes
    assert len(taken) == 1 or taken[-1] == sizes[len(taken) - 1] or taken[-1] >= 32


def test_one_sample_that_is_left_over_is_passed_over_and_batches_of_one_are_refused():
    model, data = network_and_data()
    one = (data[0][0][:1], data[0][1][:1])
    assert [len(inputs) for inputs, _ in samples_for([*data, one], 9)] == [32, 32]
    assert [len(inputs) for inputs, _ in samples_for([one, one], 9)] == [1, 1]
    options = {"loss_fn": cross_entropy, "ranking": "measured", "repair": None}
    hfp.prune(model, data[0][0], hfp.Budget(macs=0.5), data=[*data, one], **options)
    image, layers = torch.randn(1, 1, 4, 4), (nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(32, 3))
    picture = nn.Sequential(*layers)
    hfp.prune(picture, image, hfp.Budget(macs=0.5), data=[(image, one[1])], **options)  # an image has many positions
    with pytest.raises(InputError, match="takes batch-norm statistics of each batch; give batches of two samples"):
        hfp.prune(model, data[0][0], hfp.Budget(macs=0.5), data=[one, one], **options)


def test_it_needs_data_and_a_loss():
    model, data = network_and_data()
    with pytest.raises(InputError, match="ranking 'measured' needs data"):
        hfp.prune(model, data[0][0], hfp.Budget(macs=0.5), ranking="measured")
    with pytest.raises(InputError, match="and loss_fn"):
        hfp.prune(model, data[0][0], hfp.Budget(macs=0.5), data=data, ranking="measured")


def test_the_loss_is_of_a_network_with_the_batch_s_own_statistics():
    model, data = network_and_data()
    model.norm.running_mean.fill_(100.0)  # stale
    expected = []
    for inputs, labels in data:
        fresh = copy.deepcopy(model).train()
        expected.append(cross_entropy(fresh(inputs), labels).item())
    assert mean_loss(model, data, cross_entropy) == pytest.approx(sum(expected) / 2, rel=1e-5)
