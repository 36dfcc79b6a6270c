"""What every criterion must hold to, and values that must not change unnoticed."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks.criteria import data, group_of, groups, make
from torch.nn import functional

from hfp.importance import Variation, create, describe, names

CRITERIA = [
    *((name, {}) for name in names() if name not in ("random", "variation")),
    ("group-fisher", {"fisher": "gauss-newton", "draws": 2}),
    ("group-fisher", {"first_order": "signed"}),
    ("group-fisher", {"first_order": "absolute"}),
    ("group-fisher", {"joint": True}),
    ("group-kl", {"joint": True, "repaired": True}),
    ("group-loss", {"joint": False, "repaired": True}),
    ("kronecker", {"fisher": "empirical", "joint": False, "repaired": False}),
    ("empirical-fisher", {"form": "taylor"}),
    ("empirical-fisher", {"form": "paper"}),
    ("variation", {}),
]
IDS = ["-".join([name, *map(str, options.values())]) for name, options in CRITERIA]


def built(name, options, model, batch):
    if name == "variation":
        sums = {key: p.detach().sin() for key, p in model.named_parameters()}
        ones = {key: torch.ones_like(value) for key, value in sums.items()}
        options = {**options, "variation": Variation().update(sums, {k: v.square() for k, v in sums.items()}, ones)}
    criterion = create(name, **options)
    if describe(name).needs == "data":
        criterion.accumulate(model, [batch], functional.cross_entropy)
    return criterion


def assert_zero_channel_scores_zero(scores, channel):
    assert scores[channel].abs() <= 1e-6 * scores.abs().max(), scores
    assert (scores[torch.arange(len(scores)) != channel] != 0).any()


def without(model, channel):
    """The residual network with one channel of its stream, and one inside its branch, all zero."""
    with torch.no_grad():
        for layer in (model.stem, model.norm, model.b, model.side, model.a[0], model.a[1]):
            layer.weight[channel] = 0
            if layer.bias is not None:
                layer.bias[channel] = 0
        for layer in (model.a[0], model.side, model.head, model.b):
            layer.weight[:, channel] = 0
    return model


@pytest.mark.parametrize(("name", "options"), CRITERIA, ids=IDS)
def test_a_zero_channel_scores_zero(name, options):
    if name == "fpgm":
        pytest.skip("a distance to the other filters is not 0 for a filter of zeros")
    model = without(make("residual"), 1)
    criterion = built(name, options, model, data())
    for layer in ("stem", "a.0"):
        if name == "bn-scale" and layer == "b":
            continue
        assert_zero_channel_scores_zero(criterion(group_of(model, layer)), 1)


def test_zero_channel_helper_sees_a_score_that_is_not_zero():
    with pytest.raises(AssertionError, match="tensor"):
        assert_zero_channel_scores_zero(torch.tensor([0.1, 0.2]), 1)


def permuted(model, order):
    """The residual network with the channels inside its branch in another order; it computes the same."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for tensor in (
            model.a[0].weight,
            model.a[1].weight,
            model.a[1].bias,
            model.a[1].running_mean,
            model.a[1].running_var,
        ):
            tensor.copy_(tensor[order])
        model.b.weight.copy_(model.b.weight[:, order])
    return model


@pytest.mark.parametrize(("name", "options"), CRITERIA, ids=IDS)
def test_scores_follow_their_channels(name, options):
    if name == "hutchinson":
        pytest.skip("its probes are drawn by position")
    model, order = make("residual"), torch.tensor([2, 0, 3, 1])
    other = permuted(model, order)
    scores, moved = (built(name, options, m, data())(group_of(m, "a.0")) for m in (model, other))
    torch.testing.assert_close(moved, scores[order], rtol=1e-6, atol=1e-9)


@settings(max_examples=8, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=5), st.integers(0, 3), st.sampled_from(["residual", "flat"]))
def test_any_way_to_batch_gives_the_same_scores(sizes, seed, network):
    model, (images, labels) = make(network, seed), data(sum(sizes), seed)
    group = next(iter(groups(model).values()))
    for name in ("group-fisher", "group-kl", "group-loss", "kronecker", "empirical-fisher", "sampled-fisher"):
        whole, parts = create(name), create(name)
        whole.accumulate(model, [(images, labels)], functional.cross_entropy)
        parts.accumulate(
            model, list(zip(images.split(sizes), labels.split(sizes), strict=True)), functional.cross_entropy
        )
        torch.testing.assert_close(whole(group), parts(group), rtol=1e-9, atol=1e-13)


GOLDEN = {
    "bn-scale": [1.10109, 0.0293278, 1.14596, 1.72362],
    "empirical-fisher": [10524.6, 31.2035, 108387.0, 210725.0],
    "fpgm": [1.1975, 0.802464, 0.802464, 1.19757],
    "group-fisher": [2682.08, 14.393, 32873.2, 63431.6],
    "group-kl": [0.0026846, 2.39082e-05, 0.163601, 0.473681],
    "group-loss": [-23.6256, -3.08017, -81.9237, -206.17],
    "hessian": [0.127704, 0.000359448, 1.31508, 2.55686],
    "hutchinson": [-10.936, 111.027, 152.146, -197.371],
    "kronecker": [0.000541024, 1.55243e-06, 0.00158447, 0.0132919],
    "l1": [1.00005, 0.994475, 1.00179, 1.00369],
    "l2": [0.999086, 0.991773, 0.999629, 1.00951],
    "lamp": [0.332118, 0.247943, 0.497541, 1.0],
    "sampled-fisher": [0.000832851, 3.75181e-06, 0.0116743, 0.0228251],
    "taylor": [0.537396, 0.0275384, 1.44483, 1.99024],
    "group-fisher-gauss-newton-2": [0.00300919, 1.95558e-05, 0.0448471, 0.0873864],
    "group-fisher-signed": [2724.5, 11.2838, 32724.6, 63225.2],
    "group-fisher-absolute": [2724.52, 17.5038, 33021.9, 63638.1],
    "group-fisher-True": [2289.16, 14.393, 15469.4, 130584.0],
    "group-kl-True-True": [0.00304529, 1.89595e-05, 0.0403945, 1.20826],
    "group-loss-False-True": [46.7508, -2.85501, -138.352, -191.61],
    "kronecker-empirical-False-False": [138.122, 0.365298, 797.838, 1505.43],
    "empirical-fisher-taylor": [5389.11, 6.98257, 53747.6, 104744.0],
    "empirical-fisher-paper": [10397.8, 39.8226, 108833.0, 211344.0],
    "variation": [30.649, 30.6728, 31.3516, 31.6003],
}


@pytest.mark.parametrize(("name", "options"), CRITERIA, ids=IDS)
def test_golden_values(name, options):
    model = make("residual")
    with torch.no_grad():
        for place, tensor in enumerate(model.state_dict().values()):
            if tensor.is_floating_point():
                tensor.copy_(
                    torch.arange(tensor.numel(), dtype=torch.float64).add(place).mul(0.7).sin().view_as(tensor)
                )
        model.norm.running_var.abs_()
        model.a[1].running_var.abs_()
    images = torch.arange(3 * 3 * 8 * 8, dtype=torch.float64).mul(0.3).sin().view(3, 3, 8, 8)
    scores = built(name, options, model, (images, torch.tensor([0, 3, 2])))(group_of(model, "a.0"))
    key = "-".join([name, *map(str, options.values())])
    expected = torch.tensor(GOLDEN[key], dtype=torch.float64)
    torch.testing.assert_close(scores.double(), expected, rtol=1e-4, atol=1e-7)
