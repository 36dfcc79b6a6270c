"""Pruning what runs inside one module of a model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn.functional import mse_loss

import hfp
from hfp.costs.macs import macs, parameters
from hfp.pruning.coupled import coupled_report
from hfp.reconstruct import Coupling


def _layers(wide: int, inputs: int = 8) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, wide), nn.BatchNorm1d(wide), nn.ReLU(), nn.Linear(wide, inputs))


class _Chosen(nn.Module):
    """A trunk behind code that can't be followed: which rows it gets depends on a number in the data."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 8)
        self.trunk = _layers(32)
        self.head = nn.Linear(8, 3)
        self.idle = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x[int((x.sum() > 1e9).item()) :]
        return self.head(self.trunk(x))


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    found = _Chosen()
    for module in found.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.running_mean.uniform_(-1, 1)
            module.running_var.uniform_(0.5, 2)
    return found.eval()


INPUTS = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))


def assert_pruned_inside(result: hfp.PruneResult, model: nn.Module, inputs: Any, part: str) -> None:
    """Only tensors of the part are cut, the whole model runs, and the map leads there and back."""
    cut = [name for name, tensor in result.index_map.tensors.items() if not tensor.is_identity]
    assert cut and all(name.startswith(f"{part}.") for name in cut)
    state = model.state_dict()
    back = result.index_map.embed(result.index_map.restrict(state), into=state)
    assert all(torch.equal(back[name], state[name]) for name in state)
    before = macs(model, inputs) - result.report.costs["macs"][0]
    assert macs(result.model, inputs) - result.report.costs["macs"][1] == before


def test_only_what_runs_inside_the_part_is_pruned(model: nn.Module) -> None:
    result = hfp.prune(model, INPUTS, hfp.Budget(macs=0.5), part="trunk")
    assert_pruned_inside(result, model, INPUTS, "trunk")
    assert result.model.trunk[0].out_features == 16 and result.model.trunk[3].out_features == 8
    assert result.model(INPUTS).shape == model(INPUTS).shape


def test_the_whole_computes_what_it_does_with_the_removed_channels_set_to_zero(model: nn.Module) -> None:
    result = hfp.prune(model, INPUTS, hfp.Budget(macs=0.5), part="trunk")
    masked = {name: value * mask for (name, value), mask in zip(
        model.state_dict().items(), result.index_map.masks().values(), strict=True)}  # fmt: skip
    model.load_state_dict(masked)
    assert torch.allclose(result.model(INPUTS), model(INPUTS), atol=1e-6)


@pytest.mark.parametrize("kind", ["macs", "params", "bytes"])
def test_the_budget_is_counted_over_the_part(model: nn.Module, kind: str) -> None:
    report = hfp.prune(model, INPUTS, hfp.Budget(**{kind: 0.5}), part="trunk").report
    before, after = report.costs[kind]
    assert 0.45 < after / before <= 0.5
    assert report.costs["params"][0] == parameters(model.trunk)
    assert report.part == "trunk" and "trunk, a part of the model" in report.headline
    assert {layer.name.split(".")[0] for layer in report.layers} == {"trunk"}


def test_a_pruned_part_is_saved_and_loaded_with_the_whole_model(model: nn.Module, tmp_path: Any) -> None:
    result = hfp.prune(model, INPUTS, hfp.Budget(macs=0.5), part="trunk")
    hfp.save_pruned(result, tmp_path / "m.safetensors")
    again = hfp.load_pruned(tmp_path / "m.safetensors", _Chosen()).model.eval()
    assert torch.equal(again(INPUTS), result.model(INPUTS))


@pytest.mark.parametrize("importance", ["l2", "group-fisher", "empirical-fisher", "kronecker"])
def test_criteria_rankings_and_repairs_use_data_of_the_whole_model(model: nn.Module, importance: str) -> None:
    data = [(torch.randn(6, 4), torch.zeros(6, 3))]
    result = hfp.prune(
        model, INPUTS, hfp.Budget(macs=0.5), part="trunk", importance=importance, data=data * 2, steps=2,
        loss_fn=mse_loss,
        ranking="measured", repair=["least-squares"],
    )  # fmt: skip
    assert_pruned_inside(result, model, INPUTS, "trunk")
    assert [layer.name for layer in result.report.repairs[-1].layers] == ["trunk.3"]


class _Tied(nn.Module):
    """The part's first layer is also used outside of it."""

    def __init__(self, outside: bool = True) -> None:
        super().__init__()
        self.part = _layers(16)
        self.outside = outside

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.part(x)
        return found + self.part[0](x)[:, :8] if self.outside else found


def test_what_is_used_outside_of_the_part_too_stays_whole() -> None:
    model = nn.Sequential(_layers(16), _layers(16))
    model[1][0].weight = model[0][3].weight = nn.Parameter(torch.randn(16, 8))
    model[0] = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 8))
    model[0][0].weight = model[1][0].weight
    model.eval()
    result = hfp.prune(model, torch.randn(4, 8), hfp.Budget(macs=0.9), part="0")
    assert result.model[0][0].out_features == 16 and result.model[0][2].out_features < 16
    assert result.model[0][0].weight is result.model[1][0].weight


def test_an_error_says_when_the_rest_of_the_model_looks_inside_the_part() -> None:
    class Looks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part, self.head = _layers(16), nn.Linear(16, 2)
            self.part[0].register_forward_hook(self._keep)

        def _keep(self, module: nn.Module, args: Any, output: Tensor) -> None:
            self.seen = output

        def forward(self, x: Tensor) -> Tensor:
            return self.part(x), self.head(self.seen)

    with pytest.raises(hfp.reconstruct.MapError, match="outside of part uses more of it than its outputs"):
        hfp.prune(Looks(), torch.randn(4, 8), hfp.Budget(macs=0.5), part="part")


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("trnk", "unknown part 'trnk'; did you mean trunk"),
        ("", "unknown part ''"),
        ("idle", "part idle does not run"),
        ("head", "nothing can be removed from head: it is an output of the model"),
    ],
)
def test_an_error_says_what_is_wrong_with_a_part(model: nn.Module, part: str, message: str) -> None:
    with pytest.raises((hfp.InputError, hfp.reconstruct.MapError), match=message):
        hfp.prune(model, INPUTS, hfp.Budget(macs=0.5), part=part)


def test_an_error_says_that_a_part_runs_twice() -> None:
    shared = _layers(16)
    with pytest.raises(hfp.InputError, match="part 0 runs 2 times"):
        hfp.prune(nn.Sequential(shared, nn.ReLU(), shared), torch.randn(4, 8), hfp.Budget(macs=0.5), part="0")


class _Keywords(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = _Inner()

    def forward(self, x: Tensor) -> Any:
        return self.inner(x, scales=[torch.tensor(2.0)], label="a")


class _Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = _layers(16)

    def forward(self, x: Tensor, *, scales: list[Tensor], label: str) -> dict[str, Tensor]:
        x.mul_(scales[0])  # writes into what it is given
        return {label: self.layers(x)}


def test_a_part_is_called_with_the_positions_and_keywords_that_the_model_gives() -> None:
    model, inputs = _Keywords().eval(), torch.randn(4, 8)
    assert_pruned_inside(hfp.prune(model, inputs, hfp.Budget(macs=0.5), part="inner"), model, inputs, "inner")


def test_the_backbone_of_a_detector_is_pruned() -> None:
    model = torchvision.models.get_model(
        "ssdlite320_mobilenet_v3_large", weights=None, weights_backbone=None, num_classes=3
    ).eval()
    inputs = ([torch.rand(3, 64, 64)],)
    result = hfp.prune(model, inputs, hfp.Budget(macs=0.6), part="backbone")
    assert_pruned_inside(result, model, inputs, "backbone")


def test_the_encoder_of_a_vision_transformer_is_pruned() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=16, patch_size=8
    )
    model, inputs = transformers.ViTForImageClassification(config).eval(), {"pixel_values": torch.randn(2, 3, 16, 16)}
    part = next(name for name, module in model.named_modules() if type(module).__name__ == "ViTLayer")
    assert_pruned_inside(hfp.prune(model, inputs, hfp.Budget(macs=0.5), part=part), model, inputs, part)


def test_inspecting_a_part_is_about_it_alone(model: nn.Module) -> None:
    report = coupled_report(model, INPUTS, "mine", part="trunk")
    assert report.model == "mine, trunk" and [group.name for group in report.groups] == ["trunk.0"]
    assert report.parameters == parameters(model.trunk) and report.left_alone == {
        "it is an output of the model": ["trunk.3"]
    }


def test_the_callers_model_is_not_changed_by_catching_inputs(model: nn.Module) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.train()
    hfp.prune(model, INPUTS, hfp.Budget(macs=0.5), part="trunk")
    assert model.training and not model.trunk._forward_pre_hooks
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_tensors_that_are_asked_to_stay_whole_stay(model: nn.Module) -> None:
    coupling = Coupling.trace(model.trunk, torch.randn(2, 8), whole_tensors={"3.weight": "somebody needs it"})
    assert not coupling.names and coupling.reason("0.weight", 0) == "somebody needs it"
