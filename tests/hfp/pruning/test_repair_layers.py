"""Least squares repairs every kind of layer that reads channels, and says why where it can't.

In each network, removed channels are copies of others, so that the fitted weights can make up for all that is gone.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

import hfp
from hfp.pruning.repair import RepairReport, repair
from hfp.pruning.repair.report import repair_lines
from hfp.reconstruct import IndexMap, TensorMap, compact_model

KEPT = torch.tensor([0, 1, 3, 4])  # channel 2 is twice channel 0, channel 5 is twice channel 3


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def draw(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Doubled(nn.Module):
    """Six channels of a linear layer, along dimension `dim`, then what reads them."""

    def __init__(self, reader: nn.Module, dim: int = -1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.enter, self.reader, self.dim = nn.Linear(4, 6), reader, dim
        with torch.no_grad():
            for tensor in self.enter.parameters():
                tensor[2], tensor[5] = 2 * tensor[0], 2 * tensor[3]

    def forward(self, x: Tensor) -> Tensor:
        output = self.reader(self.enter(x).relu().movedim(-1, self.dim))
        return output[0] if isinstance(output, tuple) else output


def cut(model: nn.Module, cuts: dict[str, tuple[Tensor | None, ...]]) -> tuple[nn.Module, IndexMap]:
    state, maps = model.state_dict(), dict(IndexMap.identity(model).tensors)
    for name, kept in {"enter.weight": (KEPT, None), "enter.bias": (KEPT,), **cuts}.items():
        maps[name] = TensorMap(tuple(state[name].shape), kept)
    index_map = IndexMap(maps)
    return compact_model(model, index_map), index_map


def fitted(
    model: nn.Module, cuts: dict[str, tuple[Tensor | None, ...]], *shape: int
) -> tuple[RepairReport, nn.Module, Tensor]:
    """Cut, repair with batches of a shape; returns the report, the compact model and a batch."""
    model = model.double().eval()
    compact, index_map = cut(model, cuts)
    batches = [draw(*shape, seed=seed) for seed in range(3)]
    (report,) = repair(model, compact, index_map, batches, "least-squares")
    return report, compact, batches[0]


def assert_made_up_for(model: nn.Module, cuts: dict[str, tuple[Tensor | None, ...]], *shape: int) -> RepairReport:
    report, compact, x = fitted(model, cuts, *shape)
    assert report.left_alone == ()
    for layer in report.layers:
        before, after = layer.error
        assert after < 1e-3 < before, layer
    with torch.no_grad():
        expected, found = model(x), compact.eval()(x)
    assert (found - expected).norm() < 0.05 * expected.norm()
    assert report.outputs[1] < 1e-3 < report.outputs[0]
    return report


CONVOLUTIONS = {
    "one dimension": (lambda: nn.Conv1d(6, 4, 3, padding=1), 1),
    "three dimensions": (lambda: nn.Conv3d(6, 4, 2, stride=(1, 2, 1), dilation=(2, 1, 1)), 3),
    "padding that mirrors": (lambda: nn.Conv2d(6, 4, 3, padding=1, padding_mode="reflect"), 2),
    "padding by name": (lambda: nn.Conv2d(6, 4, 3, padding="same"), 2),
    "transposed": (lambda: nn.ConvTranspose2d(6, 5, 3, stride=2, padding=1, output_padding=1), 2),
    "transposed, dilated": (lambda: nn.ConvTranspose1d(6, 5, 3, stride=2, dilation=2, padding=5), 1),
    "transposed, three dimensions": (lambda: nn.ConvTranspose3d(6, 5, (1, 2, 3), stride=(1, 2, 1), bias=False), 3),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_of_every_kind_are_repaired(name):
    make, rank = CONVOLUTIONS[name]
    layer = make()
    inputs = (KEPT, None) if layer.transposed else (None, KEPT)
    cuts = {"reader.weight": (*inputs, *(None,) * rank)}
    assert_made_up_for(Doubled(layer, 1), cuts, 6, *(5,) * rank, 4)


@pytest.mark.parametrize("transposed", [False, True])
def test_groups_that_lose_inputs_are_repaired_each_by_itself(transposed):
    if transposed:
        layer, kept = nn.ConvTranspose2d(6, 4, 2, groups=2, stride=2), (KEPT, None, None, None)
    else:
        layer, kept = nn.Conv2d(6, 4, 3, groups=2, padding=1), (None, torch.tensor([0, 1]), None, None)
    assert_made_up_for(Doubled(layer, 1), {"reader.weight": kept}, 6, 4, 4, 4)


class Turned(nn.Module):
    """A linear layer as GPT-2 has it, with a weight `[in, out]`."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(draw(6, 3)), nn.Parameter(draw(3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x.flatten(0, -2), self.weight).view(*x.shape[:-1], -1)


class Left(nn.Module):
    """A weight on the left of what it is multiplied with."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(draw(3, 6))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight @ x.flatten(0, -2).T


class Heads(nn.Module):
    """A weight of three dimensions in einsum."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(draw(6, 2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("btc,chd->bthd", x, self.weight)


class Experts(nn.Module):
    """Each row goes to two of four experts, whose weights are parts of one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.router, self.weight = nn.Linear(6, 4), nn.Parameter(draw(4, 3, 6))

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(0, -2)
        values, chosen = self.router(x).softmax(-1).topk(2, -1)
        output = x.new_zeros(len(x), 3)
        for expert in range(4):
            rows, place = (chosen == expert).nonzero(as_tuple=True)
            output = output.index_add(0, rows, values[rows, place, None] * linear(x[rows], self.weight[expert]))
        return output


class Twice(nn.Module):
    """One layer in two places, and its weight in another layer."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(6, 3), nn.Linear(6, 3)
        self.other.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.one(x) + self.one(x.flip(0) / 3).tanh() + self.other(-x).tanh()


READERS: dict[str, tuple[Callable[[], nn.Module], dict[str, tuple[Tensor | None, ...]]]] = {
    "turned": (Turned, {"weight": (KEPT, None)}),
    "left": (Left, {"weight": (None, KEPT)}),
    "einsum": (Heads, {"weight": (KEPT, None, None)}),
    "weight norm": (
        lambda: weight_norm(nn.Linear(6, 3)),
        {"parametrizations.weight.original1": (None, KEPT)},
    ),
    "without bias, behind a transposition": (lambda: nn.Linear(6, 3, bias=False), {"weight": (None, KEPT)}),
}


@pytest.mark.parametrize("name", READERS)
def test_layers_that_multiply_in_other_ways_are_repaired(name):
    make, cuts = READERS[name]
    report = assert_made_up_for(Doubled(make()), {f"reader.{key}": kept for key, kept in cuts.items()}, 8, 5, 4)
    assert len(report.layers) == 1


def test_experts_see_the_rows_that_the_full_router_gives_them():
    cuts = {"reader.weight": (None, None, KEPT), "reader.router.weight": (None, KEPT)}
    report, _, _ = fitted(Doubled(Experts()), cuts, 64, 5, 4)
    assert {layer.name for layer in report.layers} == {"reader.router", "reader"}
    assert all(layer.error[1] < 1e-3 < layer.error[0] for layer in report.layers)
    assert report.outputs[1] < 0.05 * report.outputs[0]


def test_experts_that_no_row_goes_to_stay_as_they_were():
    experts = Experts()
    with torch.no_grad():
        experts.router.bias.copy_(torch.tensor([1000.0, 1000.0, 0.0, 0.0]))
    model = Doubled(experts)
    cuts = {"reader.weight": (None, None, KEPT), "reader.router.weight": (None, KEPT)}
    report, compact, _ = fitted(model, cuts, 16, 5, 4)
    assert {layer.where for layer in report.layers if layer.name == "reader"} == {
        "weight (50% of it; the rest read nothing)"
    }
    assert torch.equal(compact.reader.weight[2:], model.reader.weight[2:][:, :, KEPT])


def test_weights_in_several_places_are_fitted_to_all_of_them():
    cuts = {"reader.one.weight": (None, KEPT), "reader.other.weight": (None, KEPT)}
    report = assert_made_up_for(Doubled(Twice()), cuts, 8, 5, 4)
    assert [layer.name for layer in report.layers] == ["reader.one"]


def test_spectral_norm_takes_weights_of_its_norm():
    layer = nn.Linear(6, 6)
    with torch.no_grad():
        layer.weight.copy_(torch.diag(torch.tensor([0.2, 1.0, 0.1, 0.2, 0.3, 0.1])))
        layer.weight[0, 2], layer.weight[2, 2] = 0.3, 0.0
        layer.weight[3, 5], layer.weight[5, 5] = 0.3, 0.0
    model = Doubled(spectral_norm(layer)).double()
    for _ in range(30):
        model.train()(draw(4, 4))  # the norm's vectors settle
    cuts = {"reader.parametrizations.weight.original": (None, KEPT), "reader.parametrizations.weight.0._v": (KEPT,)}
    report = assert_made_up_for(model, cuts, 16, 4)
    assert [layer.name for layer in report.layers] == ["reader"]


def test_weights_that_a_parametrization_can_t_give_are_not_taken():
    """The fitted weights have a norm of 3, the spectral norm allows 1."""
    layer = nn.Linear(6, 3)
    with torch.no_grad():
        layer.weight.zero_()
        layer.weight[:, 0], layer.weight[:, 2] = torch.tensor([1.0, 0, 0]), torch.tensor([1e-3, 0, 0])
    model = Doubled(spectral_norm(layer)).double()
    for _ in range(30):
        model.train()(draw(4, 4))
    cuts = {"reader.parametrizations.weight.original": (None, KEPT), "reader.parametrizations.weight.0._v": (KEPT,)}
    before, _ = cut(model.eval(), cuts)
    report, compact, x = fitted(model, cuts, 16, 4)
    state = {name: tensor for name, tensor in compact.state_dict().items() if "parametrizations" in name}
    if report.layers:
        assert report.layers[0].error[1] <= report.layers[0].error[0]
    else:
        assert "its parametrization can give" in report.left_alone[0][1]
        assert all(torch.equal(tensor, before.state_dict()[name]) for name, tensor in state.items())


class Unusual(nn.Module):
    """Weights that can't be fitted, each for a reason of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.computed, self.summed, self.unused = nn.Linear(6, 3), nn.Linear(6, 3), nn.Linear(6, 3)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        weight = self.computed.weight - self.computed.weight.mean(1, keepdim=True)
        return linear(x, weight) + self.summed(x) + self.summed.weight.sum()


def test_layers_that_can_t_be_repaired_are_named_with_the_reason():
    names = ("computed", "summed", "unused")
    cuts = {f"reader.{name}.weight": (None, KEPT) for name in names}
    report, compact, _ = fitted(Doubled(Unusual()), cuts, 8, 4)
    reasons = dict(report.left_alone)
    assert report.layers == ()
    assert reasons["reader.summed"] == "its weight is also read by sum"
    assert "no product of inputs with its weight was seen" in reasons["reader.computed"]
    assert "it is not run" in reasons["reader.unused"]


def test_rows_that_differ_between_the_models_are_no_regression():
    class Positive(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate, self.layer = nn.Linear(6, 1), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x[self.gate(x)[:, 0] > 0]).sum(0)

    cuts = {"reader.gate.weight": (None, KEPT), "reader.layer.weight": (None, KEPT)}
    report, _, _ = fitted(Doubled(Positive()), cuts, 64, 4)
    assert dict(report.left_alone) == {"reader.layer": "the compact model gives it other rows than the full one"}
    assert [layer.name for layer in report.layers] == ["reader.gate"]


def test_models_that_draw_random_numbers_draw_the_same_for_both():
    class Noisy(Doubled):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x + torch.randn_like(x))

    report, _, _ = fitted(Noisy(nn.Linear(6, 3)), {"reader.weight": (None, KEPT)}, 64, 4)
    assert report.layers[0].error[1] < 1e-3 < report.layers[0].error[0]
    assert report.outputs[1] < 1e-3


def test_layers_that_read_what_is_not_finite_stay_as_they_were():
    class Infinite(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x / 0.0)

    model = Doubled(Infinite())
    report, compact, _ = fitted(model, {"reader.layer.weight": (None, KEPT)}, 8, 4)
    assert report.left_alone == (("reader.layer", "what it reads or what it should give is not finite"),)
    assert torch.equal(compact.reader.layer.weight, model.reader.layer.weight[:, KEPT])


@pytest.mark.parametrize("norm_first", [True, False])
def test_attention_of_pytorch_is_repaired(norm_first):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True, norm_first=norm_first)
    model = nn.Sequential(
        nn.Linear(8, 16), nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(16, 3)
    )
    batches = [draw(16, 6, 8, seed=seed).float() for seed in range(3)]
    result = hfp.prune(model, batches[0], hfp.Budget(macs=0.5), data=batches, repair="least-squares")
    (report,) = result.report.repairs
    assert report.left_alone == ()
    names = {layer.name.rpartition("layers.")[2] for layer in report.layers}
    assert {"0.self_attn.in_proj_weight", "0.self_attn.out_proj", "1.linear1", "1.linear2"} <= names
    assert report.outputs[1] < 0.5 * report.outputs[0]


def test_batch_norm_behind_a_view_takes_up_the_constant():
    """As in LeViT: a linear layer without bias, whose rows are flattened for batch-norm."""

    class Flattened(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.norm = nn.Linear(6, 3, bias=False), nn.BatchNorm1d(3)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.linear(x).flatten(0, 1))

    report = assert_made_up_for(Doubled(Flattened()), {"reader.linear.weight": (None, KEPT)}, 8, 5, 4)
    assert report.layers[0].where == "weight and reader.norm"


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_recurrent_layers_are_repaired(kind):
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.enter, self.cells, self.leave = nn.Linear(4, 24), kind(24, 16, batch_first=True), nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.leave(self.cells(self.enter(x).relu())[0])

    batches = [draw(32, 5, 4, seed=seed).float() for seed in range(3)]
    result = hfp.prune(Recurrent(), batches[0], hfp.Budget(macs=0.5), data=batches, repair="least-squares")
    (report,) = result.report.repairs
    assert {layer.name for layer in report.layers} == {"cells.weight_ih_l0", "cells.weight_hh_l0", "leave"}
    assert report.outputs[1] < 0.5 * report.outputs[0]


def test_lines_say_what_was_won_and_what_was_not_repaired():
    names = ("computed", "summed", "unused")
    cuts = {f"reader.{name}.weight": (None, KEPT) for name in names}
    report, _, _ = fitted(Doubled(Unusual()), cuts, 8, 4)
    lines = list(repair_lines([report]))
    assert re.fullmatch(r"repaired by least-squares on 24 samples: 0 layers, .*", lines[0])
    assert "not repaired by least-squares: reader.summed: its weight is also read by sum" in lines
    assert list(repair_lines([RepairReport("batch-norm", 0, ())])) == []


def convolutional() -> nn.Module:
    layers = [nn.Conv2d(4, 16, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64, 3))


def transformer() -> nn.Module:
    layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True)
    body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    return nn.Sequential(nn.Linear(6, 16), body, nn.Linear(16, 3))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("make", "shape"), [(convolutional, (64, 4, 6, 6)), (transformer, (64, 6, 6))])
def test_the_usual_repair_is_no_worse_in_half_precision(make, shape, dtype):
    torch.manual_seed(0)
    model = make().eval()
    errors = {}
    for kind in (torch.float32, dtype):
        own = copy.deepcopy(model).to(kind)
        batches = [draw(*shape, seed=seed).to(kind) for seed in range(3)]
        result = hfp.prune(own, batches[0], hfp.Budget(macs=0.5), data=batches)
        assert {parameter.dtype for parameter in result.model.parameters()} == {kind}
        before, errors[kind] = result.report.repairs[0].outputs
        assert errors[kind] < 0.5 * before
    assert errors[dtype] < 1.1 * errors[torch.float32] + 0.01
