"""Repairs of a pruned model against their definitions, written out in float64."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import hfp
from hfp.errors import InputError
from hfp.importance import CriterionError, GroupFisherImportance
from hfp.pruning.repair import repair
from hfp.pruning.repair.least_squares import RIDGE, RegressionMoments, solve
from hfp.reconstruct import IndexMap, TensorMap, compact_model


def draw(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pruned(model: nn.Module, cuts: dict[str, tuple[list[int] | None, ...]]) -> tuple[nn.Module, IndexMap]:
    """The compact model that keeps these indices per dimension."""
    state = model.state_dict()
    maps = dict(IndexMap.identity(model).tensors)
    for name, kept in cuts.items():
        maps[name] = TensorMap(tuple(state[name].shape), tuple(None if k is None else torch.tensor(k) for k in kept))
    index_map = IndexMap(maps)
    return compact_model(model, index_map), index_map


def outputs(model: nn.Module, name: str, x: Tensor) -> Tensor:
    found: list[Tensor] = []
    handle = model.get_submodule(name).register_forward_hook(lambda _, __, output: found.append(output))
    with torch.no_grad():
        model.eval()(x)
    handle.remove()
    return found[0]


class Convolutions(nn.Module):
    """A padded and strided convolution between two others; batch-norm or none."""

    def __init__(self, norm: bool, **options: object) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 6, 3, padding=1)
        self.second = nn.Conv2d(6, 4, 3, bias=not norm, **options)
        self.norm = nn.BatchNorm2d(4) if norm else nn.Identity()
        self.third = nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.third(self.norm(self.second(self.first(x).relu())).relu())


def convolutions(norm: bool = False, **options: object) -> tuple[nn.Module, nn.Module, IndexMap]:
    torch.manual_seed(0)
    model = Convolutions(norm, **options).double().eval()
    if norm:
        model.norm.running_mean.copy_(draw(4))
        model.norm.running_var.copy_(draw(4).abs() + 0.5)
    kept = [0, 2, 3, 5]
    cuts = {"first.weight": (kept, None, None, None), "first.bias": (kept,), "second.weight": (None, kept, None, None)}
    return model, *pruned(model, cuts)


def naive_rows(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """`[samples * height * width, in * kernel]`, one patch at a time."""
    top, left = layer.padding
    wide = torch.zeros(len(x), x.shape[1], x.shape[2] + 2 * top, x.shape[3] + 2 * left, dtype=x.dtype)
    wide[:, :, top : top + x.shape[2], left : left + x.shape[3]] = x
    (kh, kw), (sh, sw), (dh, dw) = layer.kernel_size, layer.stride, layer.dilation
    height = (wide.shape[2] - dh * (kh - 1) - 1) // sh + 1
    width = (wide.shape[3] - dw * (kw - 1) - 1) // sw + 1
    return torch.stack([
        torch.stack([
            wide[n, c, i * sh + a * dh, j * sw + b * dw]
            for c in range(x.shape[1]) for a in range(kh) for b in range(kw)
        ])
        for n in range(len(x)) for i in range(height) for j in range(width)
    ])  # fmt: skip


def naive_least_squares(x: Tensor, y: Tensor, before: Tensor, constant: bool) -> tuple[Tensor, Tensor]:
    """Minimise ``mean |y - W x - b|² + λ |W - W_0|²`` as one least-squares problem with extra rows for the ridge.

    x: `[rows, in]`. y: `[rows, out]`. before: W_0, `[out, in]`.
    """
    spread = x - x.mean(0) if constant else x
    strength = RIDGE * spread.square().mean(0).mean()
    extra = (strength * len(x)).sqrt() * torch.eye(x.shape[1], dtype=x.dtype)
    rows = torch.cat([x, extra])
    targets = torch.cat([y, extra @ before.T])
    if constant:
        ones = torch.cat([torch.ones(len(x), 1), torch.zeros(len(extra), 1)]).to(x)
        rows = torch.cat([rows, ones], 1)
    solved = torch.linalg.lstsq(rows, targets).solution.T
    return (solved[:, :-1], solved[:, -1]) if constant else (solved, torch.zeros(len(solved), dtype=x.dtype))


# --- bias -------------------------------------------------------------------------------------------------------------


def test_bias_of_a_linear_layer_takes_the_mean_of_what_is_gone():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).double()
    kept, gone = [0, 3, 4], [1, 2, 5]
    compact, index_map = pruned(model, {"0.weight": (kept, None), "0.bias": (kept,), "2.weight": (None, kept)})
    batches = [(draw(5, 4, seed=1), None), (draw(3, 4, seed=2), None)]
    (report,) = repair(model, compact, index_map, batches, "bias")
    hidden = model[0](torch.cat([x for x, _ in batches])).relu()
    expected = model[2].bias + sum(hidden[:, channel].mean() * model[2].weight[:, channel] for channel in gone)
    torch.testing.assert_close(compact[2].bias, expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(compact[2].weight, model[2].weight[:, kept])
    assert (report.kind, report.samples, [layer.name for layer in report.layers]) == ("bias", 8, ["2"])


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("options", [{"padding": 1}, {"stride": 2, "padding": 1}])
def test_after_bias_compensation_means_are_those_of_the_full_model(norm, options):
    model, compact, index_map = convolutions(norm, **options)
    x = draw(3, 2, 5, 5)
    place = "norm" if norm else "second"
    expected = outputs(model, place, x).mean((0, 2, 3))
    assert (outputs(compact, place, x).mean((0, 2, 3)) - expected).abs().max() > 1e-2
    (report,) = repair(model, compact, index_map, [(x, None)], "bias")
    torch.testing.assert_close(outputs(compact, place, x).mean((0, 2, 3)), expected, rtol=1e-10, atol=1e-10)
    assert report.layers[0].where == ("norm" if norm else "bias")
    if norm:
        assert torch.equal(compact.norm.bias, model.norm.bias)
        assert torch.equal(compact.norm.running_var, model.norm.running_var)


def test_later_layers_see_compensated_inputs():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).double()
    a, b = [0, 3, 4], [1, 2, 4]
    cuts = {"0.weight": (a, None), "0.bias": (a,), "2.weight": (b, a), "2.bias": (b,), "4.weight": (None, b)}
    compact, index_map = pruned(model, cuts)
    x = draw(9, 4)
    repair(model, compact, index_map, [(x, None)], "bias")
    for name, kept in (("2", b), ("4", [0, 1, 2])):
        expected = outputs(model, name, x).mean(0)[kept]
        torch.testing.assert_close(outputs(compact, name, x).mean(0), expected, rtol=1e-10, atol=1e-10)


# --- least squares ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("options", [{"padding": 1}, {"stride": 2, "padding": (0, 2)}, {"dilation": 2, "padding": 2}])
def test_convolutions_are_fitted_by_least_squares(norm, options):
    model, compact, index_map = convolutions(norm, **options)
    batches = [(draw(4, 2, 5, 6, seed=1), None), (draw(2, 2, 5, 6, seed=2), None)]
    before = compact.second.weight.detach().clone()
    (report,) = repair(model, compact, index_map, batches, "least-squares")
    x = torch.cat([images for images, _ in batches])
    rows = naive_rows(model.second, outputs(compact, "first", x).relu())
    y = outputs(model, "second", x).movedim(1, -1).flatten(0, 2)
    weight, bias = naive_least_squares(rows, y, before.flatten(1), constant=True)
    torch.testing.assert_close(compact.second.weight.flatten(1), weight, rtol=1e-8, atol=1e-10)
    if norm:
        torch.testing.assert_close(model.norm.running_mean - compact.norm.running_mean, bias, rtol=1e-8, atol=1e-10)
    else:
        torch.testing.assert_close(compact.second.bias, bias, rtol=1e-8, atol=1e-10)
    error = report.layers[0].error
    missed = (y - rows @ weight.T - bias).square().sum() / (y - y.mean(0)).square().sum()
    assert error[1] == pytest.approx(missed.item(), rel=1e-6)
    assert error[0] > error[1]


def test_layers_without_a_place_for_a_constant_are_fitted_without():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3, bias=False)).double()
    kept = [0, 3, 4]
    compact, index_map = pruned(model, {"0.weight": (kept, None), "0.bias": (kept,), "2.weight": (None, kept)})
    x = draw(7, 4)
    (report,) = repair(model, compact, index_map, [x], "least-squares")
    hidden = model[0](x).relu().detach()
    expected, _ = naive_least_squares(hidden[:, kept], (model[2](hidden)).detach(), model[2].weight[:, kept], False)
    torch.testing.assert_close(compact[2].weight.detach(), expected.detach(), rtol=1e-8, atol=1e-10)
    assert report.layers[0].where == "weight"
    (left,) = repair(model, compact, index_map, [x], "bias")
    assert not left.layers
    assert left.left_alone[0][0] == "2"
    assert "it has no bias" in left.left_alone[0][1]


@pytest.mark.parametrize("constant", [True, False])
def test_groups_of_a_convolution_are_fitted_apart(constant):
    x, y, weight, bias = draw(3, 50, 4), draw(3, 50, 2, seed=2), draw(3, 2, 4, seed=3), draw(3, 2, seed=4)
    moments = RegressionMoments()
    for part in (slice(0, 13), slice(13, 50)):
        moments.add(x[:, part], y[:, part])
    found = solve(moments, weight, bias, 0.0, constant)
    for group in range(3):
        target = y[group] if constant else y[group] - bias[group]
        rows = torch.cat([x[group], torch.ones(50, 1)], 1) if constant else x[group]
        solved = torch.linalg.lstsq(rows, target).solution.T
        torch.testing.assert_close(found.weight[group], solved[:, :4], rtol=1e-9, atol=1e-10)
        if constant:
            torch.testing.assert_close(found.shift[group] + bias[group], solved[:, 4], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(("far", "first"), [(0.0, 0.0), (300.0, 0.0), (0.0, 3e4)])
def test_moments_in_single_precision_keep_small_variances_beside_large_means_and_a_first_row_far_off(far, first):
    x, weight, other, bias = far + draw(1, 500, 4), draw(1, 2, 4, seed=3), draw(1, 2, 4, seed=5), draw(1, 2, seed=4)
    x[:, 0, 0] += first
    exact, single = RegressionMoments(), RegressionMoments()
    for part in (x[:, :0], *x.split(100, 1)):
        exact.add(part, part @ other.mT)
        single.add(part.float(), (part.float().double() @ other.mT).float())
    expected, found = (solve(moments, weight, bias, RIDGE, constant=True) for moments in (exact, single))
    torch.testing.assert_close(found.weight, expected.weight, rtol=0, atol=1e-3)
    assert single.missed(found.weight, bias + found.shift) == pytest.approx(
        exact.missed(expected.weight, bias + expected.shift), rel=0.05
    )


@pytest.mark.parametrize("rows", [1, 64])
def test_samples_that_do_not_vary_change_the_constant_alone(rows):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 2))
    kept = list(range(24))
    compact, index_map = pruned(model, {"0.weight": (kept, None), "0.bias": (kept,), "2.weight": (None, kept)})
    x = draw(1, 4).float().expand(rows, 4)
    (report,) = repair(model, compact, index_map, [x], "least-squares")
    torch.testing.assert_close(compact[2].weight, model[2].weight[:, kept], rtol=0, atol=1e-4)
    torch.testing.assert_close(compact(x), model(x))
    assert [layer.name for layer in report.layers] == ["2"]


def test_what_can_be_made_up_for_is():
    """The removed channel is twice another one: least squares finds its weights, the error goes to nothing."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).double()
    with torch.no_grad():
        model[0].weight[2] = 2 * model[0].weight[0]
        model[0].bias[2] = 2 * model[0].bias[0]
    compact, index_map = pruned(model, {"0.weight": ([0, 1], None), "0.bias": ([0, 1],), "2.weight": (None, [0, 1])})
    batches = [draw(40, 4, seed=seed) for seed in range(3)]
    (report,) = repair(model, compact, index_map, batches, "least-squares")
    before, after = report.layers[0].error
    assert after < 1e-3 < before


# --- batch-norm -------------------------------------------------------------------------------------------------------


def test_batch_norm_takes_statistics_of_the_compact_model_anew():
    model, compact, index_map = convolutions(norm=True)
    batches = [(draw(3, 2, 5, 5, seed=1), None), (draw(2, 2, 5, 5, seed=2), None)]
    momentum, buffers = compact.norm.momentum, compact.norm.num_batches_tracked.clone()
    (report,) = repair(model, compact, index_map, batches, "batch-norm")
    parts = [(len(x), outputs(compact, "second", x)) for x, _ in batches]
    mean = sum(size * y.mean((0, 2, 3)) for size, y in parts) / 5
    variance = sum(size * y.movedim(1, 0).flatten(1).var(1) for size, y in parts) / 5
    torch.testing.assert_close(compact.norm.running_mean, mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(compact.norm.running_var, variance, rtol=1e-12, atol=1e-12)
    assert compact.norm.momentum == momentum
    assert compact.norm.num_batches_tracked == buffers
    assert [layer.name for layer in report.layers] == ["norm"]


# --- in hfp.prune -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bias", "batch-norm", "least-squares"])
def test_data_that_are_not_finite_change_nothing(kind):
    model, small, index_map = convolutions(norm=True)
    before = copy.deepcopy(small.state_dict())
    broken = draw(4, 2, 8, 8)
    broken[1, 0, 3, 3] = torch.nan
    (report,) = repair(model, small, index_map, [(draw(4, 2, 8, 8), None), (broken, None)], kind)
    assert not report.layers
    assert any("not finite" in reason for _, reason in report.left_alone)
    assert all(torch.equal(tensor, before[name]) for name, tensor in small.state_dict().items())


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))


IMAGES = torch.randn(2, 1, 12, 12, generator=torch.Generator().manual_seed(1))


def data(count: int = 3) -> list[tuple[Tensor, Tensor]]:
    make = torch.Generator().manual_seed(2)
    return [(torch.randn(8, 1, 12, 12, generator=make), torch.arange(8) % 4) for _ in range(count)]


def test_prune_repairs_and_leaves_the_caller_s_model_alone(tmp_path):
    model = network().train()
    model(IMAGES).sum().backward()
    kept = copy.deepcopy({name: (t, t.grad) for name, t in model.state_dict(keep_vars=True).items()})
    random = torch.random.get_rng_state()
    plain = hfp.prune(model, IMAGES, hfp.Budget(ratio=0.5))
    result = hfp.prune(model, IMAGES, hfp.Budget(ratio=0.5), data=data(), repair=("bias", "least-squares"))
    assert torch.equal(torch.random.get_rng_state(), random)
    for name, tensor in model.state_dict(keep_vars=True).items():
        assert torch.equal(tensor, kept[name][0])
        assert (tensor.grad is None) == (kept[name][1] is None)
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.modules())
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in result.model.modules())
    assert all(module.training for module in result.model.modules())
    assert result.index_map == plain.index_map
    x = torch.cat([images for images, _ in data()])
    with torch.no_grad():
        expected = copy.deepcopy(model).eval()(x)
        errors = [(r.model.eval()(x) - expected).norm() for r in (plain, result)]
    assert errors[1] < 0.5 * errors[0]
    assert [report.kind for report in result.report.repairs] == ["bias", "least-squares"]
    assert result.report.as_dict()["repairs"][0]["samples"] == 24
    path = hfp.save_pruned(result, tmp_path / "m.safetensors")
    again = hfp.load_pruned(path, network())
    assert again.metadata["repairs"] == ["bias", "least-squares"]
    with torch.no_grad():
        assert torch.equal(again.model.eval()(x), result.model(x))
    full = result.index_map.embed(result.model.state_dict(), into=model.state_dict())
    back = result.index_map.restrict(full)
    assert all(torch.equal(back[name], value) for name, value in result.model.state_dict().items())


def test_data_repair_unless_that_is_switched_off():
    budget = hfp.Budget(ratio=0.5)
    usual = hfp.prune(network(), IMAGES, budget, data=data())
    asked = hfp.prune(network(), IMAGES, budget, data=data(), repair="least-squares")
    without, plain = (
        hfp.prune(network(), IMAGES, budget, data=data(), repair=None),
        hfp.prune(network(), IMAGES, budget),
    )
    assert [repair.kind for repair in usual.report.repairs] == ["least-squares"]
    assert without.report.repairs == plain.report.repairs == ()
    for one, other in ((usual, asked), (without, plain)):
        for name, tensor in one.model.state_dict().items():
            assert torch.equal(tensor, other.model.state_dict()[name])


def test_statistics_stay_as_they_were_where_batches_are_too_small():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 2)).double()
    compact = copy.deepcopy(model)
    with pytest.raises(InputError, match="on a batch of 1: give larger batches"):
        repair(model, compact, IndexMap.identity(model), [draw(8, 4), draw(1, 4)], "batch-norm")
    for name, tensor in compact.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name])


def test_data_that_the_model_can_t_be_called_with_say_how_to_go_without():
    with pytest.raises(InputError, match=r"can't run the model on them \(.*\); repair=None goes without"):
        hfp.prune(network(), IMAGES, hfp.Budget(ratio=0.5), data=[torch.zeros(2, 3)])
    assert hfp.prune(network(), IMAGES, hfp.Budget(ratio=0.5), data=[torch.zeros(2, 3)], repair=None)


def test_the_report_says_per_layer_what_was_won():
    result = hfp.prune(network(), IMAGES, hfp.Budget(ratio=0.5), data=data())
    errors = {layer.name: layer.error for layer in result.report.repairs[0].layers}
    shown = io.StringIO()
    Console(file=shown, width=80).print(result.report.shown())
    for name, (before, after) in errors.items():
        assert after <= before
        row = next(line for line in shown.getvalue().splitlines() if line.startswith(f"│ {name} "))
        assert row.endswith(f" {100 * after:.{0 if after >= 0.0995 else 1}f}% │")
    assert "most is left of" in repr(result)
    assert "<th>error</th>" in result._repr_html_()
    assert "error" not in hfp.prune(network(), IMAGES, hfp.Budget(ratio=0.5))._repr_html_()


@pytest.mark.parametrize("kinds", ["bias", "least-squares", "batch-norm"])
def test_steps_repair_and_score_again(kinds):
    criterion = GroupFisherImportance()
    result = hfp.prune(
        network(), IMAGES, hfp.Budget(ratio=0.5), importance=criterion, data=iter(data()), loss_fn=cross_entropy,
        steps=3, repair=kinds,
    )  # fmt: skip
    assert len(result.report.repairs) == 1
    assert criterion.samples == 24


def test_a_criterion_object_gives_in_steps_what_its_name_gives():
    results = [
        hfp.prune(
            network(), IMAGES, hfp.Budget(ratio=0.5), importance=importance, data=data(), loss_fn=cross_entropy, steps=3
        )
        for importance in ("group-fisher", GroupFisherImportance())
    ]
    assert results[0].index_map == results[1].index_map


def test_more_batches_only_refine():
    """What one large batch gives and what the same samples in parts give are close."""
    model = network()
    x = [images for images, _ in data(8)]
    found = []
    for batches in (x, [torch.cat(x)]):
        result = hfp.prune(model, IMAGES, hfp.Budget(ratio=0.5), data=batches, repair="least-squares")
        found.append(result.model.eval()(torch.cat(x)))
    plain = hfp.prune(model, IMAGES, hfp.Budget(ratio=0.5)).model.eval()(torch.cat(x))
    assert (found[0] - found[1]).norm() < 0.25 * (found[0] - plain).norm()


@pytest.mark.parametrize(
    ("change", "message", "error"),
    [
        ({"repair": "magic"}, "repair is one of batch-norm, bias, least-squares", InputError),
        ({"repair": ("bias", "bias")}, "repair lists bias twice; list each once", InputError),
        ({"repair": True}, "several of them, or None, not True", InputError),
        ({"repair": "bias", "data": None}, "repair='bias' needs data", InputError),
        ({"repair": "bias", "data": []}, "there is no batch", CriterionError),
        ({"importance": GroupFisherImportance(), "data": None, "steps": 2}, "can't score again in 2 steps", InputError),
    ],
)
def test_wrong_repairs_are_refused(change, message, error):
    request = {"data": data(1), **change}
    with pytest.raises(error, match=message):
        hfp.prune(network(), IMAGES, hfp.Budget(ratio=0.5), **request)


class Wide(nn.Module):
    """Inputs far from zero, whose sums half precision can't hold."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(16, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 8))
        with torch.no_grad():
            self.layers[0].bias.fill_(1.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_repaired_as_well_as_single_precision(dtype):
    model, probe = Wide().eval(), draw(256, 16, seed=9).float()
    batches = [draw(128, 16, seed=seed).float() for seed in range(4)]
    with torch.no_grad():
        expected = model(probe)
    errors = {}
    for each in (torch.float32, dtype):
        own = copy.deepcopy(model).to(each)
        found = hfp.prune(
            own, probe[:2].to(each), hfp.Budget(macs=0.4), data=[batch.to(each) for batch in batches],
            repair="least-squares",
        )  # fmt: skip
        with torch.no_grad():
            errors[each] = (found.model(probe.to(each)).float() - expected).square().mean() / expected.var()
        assert found.report.repairs[0].left_alone == ()
    assert errors[dtype] < 1.2 * errors[torch.float32] + 0.01


def test_weights_that_rounding_makes_worse_than_before_are_not_taken():
    """Inputs that nearly agree: rounded one by one, the fitted weights no longer add up to what they should."""
    unit, kept = 2.0**-7, 8  # the distance of bfloat16 numbers from 1 to 2
    share, single = draw(1024, 1, seed=5), draw(1024, kept, seed=6)
    x = (share + 0.3 * single).bfloat16()
    lost = x.float() @ (unit * torch.tensor([0.6] * 4 + [-0.4] * 4))
    model = nn.Sequential(nn.Linear(9, 9, bias=False), nn.Linear(9, 1, bias=False)).bfloat16()
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(9))
        model[1].weight.fill_(1.25)
        model[1].weight[0, -1] = 1.0
    left = list(range(kept))
    compact, index_map = pruned(model, {"0.weight": (left, None), "1.weight": (None, left)})
    batches = [torch.cat([x, lost[:, None].bfloat16()], 1)]
    (report,) = repair(model, compact, index_map, batches, "least-squares")
    assert torch.equal(compact[1].weight, torch.full((1, kept), 1.25).bfloat16())
    assert report.layers == ()
    assert report.left_alone == (
        ("1", "the fitted weights, rounded to bfloat16, are no better than those that pruning left"),
    )
