"""Any model a user brings: pruned exactly, or refused with the reason."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from networks.users import USER_NETWORKS, Auxiliary, Computed, Generator, Recurrent, Typed
from torch import Tensor, nn

import hfp
from hfp import InputError
from hfp.importance import CriterionError
from hfp.layers.calling import call, results
from hfp.reconstruct import Coupling, MapError


def made(name: str) -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    make, inputs = USER_NETWORKS[name]
    return make().eval(), inputs


def doubled(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(doubled, value))
    return value.double() if value.is_floating_point() else value


SLOW = {"transformer"}


@pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else []) for name in USER_NETWORKS]
)
def test_compact_models_compute_what_the_full_one_does_without_the_channels(name, tmp_path):
    model, inputs = made(name)
    result = hfp.prune(model, inputs, hfp.Budget(ratio=0.5))
    macs = result.report.costs["macs"]
    assert macs[1] <= 0.56 * macs[0]
    hfp.save_pruned(result, tmp_path / "model.safetensors")
    again = hfp.load_pruned(tmp_path / "model.safetensors", USER_NETWORKS[name][0]()).model.eval()
    coupling = Coupling.trace(model, inputs)
    with torch.no_grad():
        for kept, loaded in zip(results(call(result.model, inputs)), results(call(again, inputs)), strict=True):
            assert torch.equal(kept, loaded)
        compact = results(call(copy.deepcopy(result.model).double(), doubled(inputs)))
        masked = results(coupling.masked_output(copy.deepcopy(model).double(), doubled(inputs), result.index_map))
    full = results(call(model, inputs))
    assert [t.shape for t in compact] == [t.shape for t in masked] == [t.shape for t in full]
    for ours, theirs in zip(compact, masked, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=1e-9)


def test_what_only_training_uses_follows():
    model, inputs = made("auxiliary")
    result = hfp.prune(model, inputs, hfp.Budget(ratio=0.5))
    logits, helper = result.model.train()(inputs)
    assert logits.shape == helper.shape == (2, 3)
    assert result.model.helper.weight.shape == (3, 6, 1, 1)
    reasons = {layer.name: layer.reason for layer in result.report.layers}
    assert reasons["spare"] == "the forward pass does not use it"
    assert reasons["helper_head"] == "it is an output of the model"


def test_buffers_that_only_training_uses_follow():
    class Averaged(nn.Module):
        """A layer that keeps a moving average of what it passes on, as a learnt code book does."""

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("average", torch.zeros(8))

        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                self.average.mul_(0.9).add_(0.1 * x.detach().mean(0))
            return x

    model = nn.Sequential(nn.Linear(4, 8), Averaged(), nn.Linear(8, 2))
    small = hfp.prune(model, torch.randn(3, 4), hfp.Budget(ratio=0.5)).model.train()
    assert small(torch.randn(3, 4)).shape == (3, 2)
    assert small[1].average.shape == (4,)
    assert small[1].average.all()


def test_models_that_take_other_inputs_in_training_are_traced_in_evaluation():
    class Picky(Auxiliary):
        def forward(self, x: Tensor, target: Tensor | None = None) -> Any:
            if self.training and target is None:
                raise ValueError("targets are needed")
            return super().forward(x)

    result = hfp.prune(Picky(), torch.randn(2, 3, 7, 7), hfp.Budget(ratio=0.5))
    reasons = {layer.name: layer.reason for layer in result.report.layers}
    assert reasons["helper"] == "the forward pass does not use it"


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_weights_that_hooks_compute_are_followed():
    model = Computed(nn.utils.weight_norm)
    x = torch.randn(2, 3, 9)
    result = hfp.prune(model, x, hfp.Budget(ratio=0.5))
    assert (result.model.a.out_channels, result.model.b.in_channels) == (4, 4)
    assert result.model.eval()(x).shape == (2, 3)


def test_reports_count_the_channels_of_every_kind_of_layer():
    rows = {}
    for model, x in ((Generator(), USER_NETWORKS["generator"][1]), (Recurrent(), USER_NETWORKS["gru"][1])):
        report = hfp.prune(model, x, hfp.Budget(ratio=0.5)).report
        rows |= {layer.name: (layer.inputs, layer.before, layer.after) for layer in report.layers}
    assert rows["b"] == ((16, 8), 8, 4)
    assert rows["c"] == ((8, 4), 8, 4)
    assert rows["recur"] == ((12, 6), 12, 6)
    weighted = hfp.prune(*made("weight norm"), hfp.Budget(ratio=0.5)).report
    layers = {layer.name: layer for layer in weighted.layers}
    assert set(layers) == {"a", "b", "head"}
    assert layers["b"].parameters == (8 * 8 * 3 + 8 + 8, 4 * 4 * 3 + 4 + 4)


def test_groups_without_a_score_are_left_alone():
    class Product(nn.Module):
        def __init__(self, inputs: int, outputs: int) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.rand(inputs, outputs))

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.weight

    model = nn.Sequential(Product(4, 6), Product(6, 4), nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    layers = hfp.prune(model, torch.randn(2, 4), hfp.Budget(ratio=0.5), importance="lamp").report.layers
    assert {layer.name: layer.after for layer in layers} == {"0": 6, "1": 2, "2": 4, "4": 3}
    assert layers[0].reason is not None and layers[0].reason.startswith("the criterion has no score for it")
    with pytest.raises(InputError, match="coupled groups left alone: 1, such as that of .*: the criterion has no"):
        hfp.prune(model, torch.randn(2, 4), hfp.Budget(params=0.1), importance="lamp")
    with pytest.raises(CriterionError, match="nothing to score"):
        hfp.prune(*made("bare"), hfp.Budget(ratio=0.5), importance="lamp")


@pytest.mark.filterwarnings("ignore:.*torch.jit.*")
def test_compiled_parts_are_refused():
    model = nn.Sequential(torch.jit.trace(nn.Linear(4, 4), torch.randn(1, 4)), nn.Linear(4, 2))
    with pytest.raises(MapError, match="0 is compiled .*; prune the plain module and compile the result"):
        Coupling.trace(model, torch.randn(2, 4))


def test_outputs_without_tensors_are_refused():
    class Silent(Typed):
        def forward(self, x: Tensor) -> Any:
            return str(super().forward(x).logits.shape)

    with pytest.raises(MapError, match="the model returned a str without tensors"):
        Coupling.trace(Silent(), torch.randn(2, 6))


def test_recurrent_and_fused_layers_are_counted():
    from hfp.costs.macs import macs

    tokens = USER_NETWORKS["gru"][1]
    small, large = Recurrent(nn.LSTM), Recurrent(nn.LSTM)
    large.recur = nn.LSTM(12, 24, 2, batch_first=True)
    large.mix = nn.Linear(24, 10)
    gates = 2 * 5 * 4  # batch, length, gates
    assert macs(large, tokens) - macs(small, tokens) == gates * (12 * 24 + 3 * 24 * 24 - 4 * 12 * 12) + 2 * 12 * 10
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    products = 10 * (4 * 8 * 8 + 2 * 8 * 16) + 2 * 2 * 5 * 5 * 8
    assert macs(layer, torch.randn(2, 5, 8)) == products
