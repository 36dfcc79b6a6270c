"""What pruning does to the model it was given: nothing."""

from __future__ import annotations

import random
import threading

import numpy as np
import pytest
import torch
import torch.nn.utils.prune as torch_prune
from torch import Tensor, nn
from torch.ao.quantization import MovingAverageMinMaxObserver
from torch.nn.functional import cross_entropy
from torch.nn.utils.parametrizations import spectral_norm

import hfp
from hfp.errors import InputError
from hfp.importance import GroupFisherImportance
from hfp.pruning.coupled import coupled_report
from hfp.pruning.own_copy import own_copy
from hfp.reconstruct import MapError

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
DATA = [(X, torch.tensor([0, 1, 2, 0]))]


class Remembers(nn.Module):
    """Counts its calls, keeps its features, and observes the range of its inputs."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(6, 16), nn.Linear(16, 3)
        self.observer = MovingAverageMinMaxObserver()
        self.register_buffer("calls", torch.zeros(()))
        self.features: Tensor | None = None
        self.seen: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.seen.append(len(x))
        self.features = self.first(self.observer(x)).relu()
        return self.second(self.features)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"importance": "group-fisher", "data": DATA, "loss_fn": cross_entropy, "steps": 2},
        {"ranking": "measured", "data": DATA, "loss_fn": cross_entropy, "repair": ("bias", "least-squares")},
    ],
)
def test_buffers_attributes_and_hooks_stay_as_they_were(options):
    model, fired = Remembers(), []
    model(X)
    model.first.register_forward_hook(lambda *_: fired.append("forward"))
    model.second.register_forward_pre_hook(lambda *_: fired.append("before"))
    model.second.register_full_backward_hook(lambda *_: fired.append("backward"))
    features, ranges = model.features, (model.observer.min_val.clone(), model.observer.max_val.clone())
    result = hfp.prune(model, X, hfp.Budget(macs=0.5), **options)
    assert fired == []
    assert (model.calls.item(), model.seen) == (1, [4])
    assert model.features is features
    assert (model.observer.min_val, model.observer.max_val) == ranges
    assert result.model.calls == 1
    assert len(result.model.first._forward_hooks) == 1
    assert any("hooks of first, second were not called while pruning" in note for note in result.report.notes)


@pytest.mark.parametrize("made_inside", [False, True])
def test_inside_inference_mode_a_model_is_pruned_as_outside(made_inside):
    def network() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))

    def pruned(model: nn.Module) -> nn.Module:
        request = {"importance": "group-fisher", "data": DATA, "loss_fn": cross_entropy}
        return hfp.prune(model, X, hfp.Budget(macs=0.5), **request).model

    outside = network()
    with torch.inference_mode():
        found = pruned(network() if made_inside else outside)
    assert all(map(torch.equal, found.state_dict().values(), pruned(outside).state_dict().values()))
    found(X).sum().backward()
    with torch.inference_mode():
        assert coupled_report(outside, X, "mine").groups[0].channels == 16


def test_repairs_reach_the_result_and_what_forward_counts_does_not():
    model = Remembers()
    plain = hfp.prune(model, X, hfp.Budget(macs=0.5))
    repaired = hfp.prune(model, X, hfp.Budget(macs=0.5), data=DATA, repair="bias")
    assert not torch.equal(plain.model.second.bias, repaired.model.second.bias)
    assert torch.equal(plain.model.second.weight, repaired.model.second.weight)
    assert repaired.model.calls == 0
    assert plain.report.notes == ()


class Doubles:
    def double(self, _: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return 2 * output


def test_methods_and_pytorch_s_own_hooks_are_copied_with_the_model():
    model = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 3))
    torch_prune.ln_structured(model[0], "weight", 0.5, 1, 0)
    model[1].register_forward_hook(Doubles().double)
    copy, without = own_copy(model)
    assert without == ()
    assert torch.equal(copy(X), model(X))
    assert copy[0].weight_orig is model[0].weight_orig


def test_a_model_that_needs_a_hook_says_so():
    model = nn.Sequential(nn.Linear(6, 8), nn.Linear(6, 3))
    model[0].register_forward_hook(lambda _, __, output: output[:, :6])
    with pytest.raises(InputError, match="does not run on the example inputs .*; hooks of 0 are plain functions"):
        hfp.prune(model, X, hfp.Budget(ratio=0.5))


def test_an_attribute_that_can_t_be_copied_is_named():
    model = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 3))
    model[1].guard = threading.Lock()
    with pytest.raises(InputError, match="attribute 'guard' of 1 is a lock .*; delete it while pruning"):
        hfp.prune(model, X, hfp.Budget(ratio=0.5))


def test_a_criterion_that_has_seen_the_caller_s_model_is_shown_it():
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    criterion = GroupFisherImportance()
    criterion.accumulate(model, DATA, cross_entropy)
    again = hfp.prune(model, X, hfp.Budget(ratio=0.5), importance="group-fisher", data=DATA, loss_fn=cross_entropy)
    assert hfp.prune(model, X, hfp.Budget(ratio=0.5), importance=criterion).index_map == again.index_map
    seen = []
    hfp.prune(
        model, X, hfp.Budget(ratio=0.5),
        importance=lambda group: seen.append(group[0].dep.target.module) or torch.arange(8.0),
    )  # fmt: skip
    assert seen == [model[0]]


def test_a_model_that_writes_into_its_inputs_is_pruned_and_the_callers_inputs_stay() -> None:
    class Doubles(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))

        def forward(self, x: Tensor) -> Tensor:
            return self.layers(x.mul_(2))

    inputs = X.clone()
    result = hfp.prune(Doubles(), (inputs,), hfp.Budget(macs=0.5))
    assert torch.equal(inputs, X) and result.model.layers[0].out_features == 8


def test_hooks_by_which_transformers_collects_outputs_stay_and_other_functions_are_left_out() -> None:
    def collecting(module: nn.Module, args: object, output: Tensor) -> None:
        pass

    model = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 2))
    model[1].register_forward_hook(collecting)
    assert own_copy(model)[1] == ("1",)
    collecting.__module__ = "transformers.utils.output_capturing"
    own, without = own_copy(model)
    assert not without and len(own[1]._forward_hooks) == 1


def test_hooks_of_parameters_are_not_called() -> None:
    model, fired = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), []
    model[0].weight.register_post_accumulate_grad_hook(lambda parameter: parameter.data.zero_())
    model[2].weight.register_hook(lambda _: fired.append("backward"))
    before = model[0].weight.detach().clone()
    result = hfp.prune(model, X, hfp.Budget(macs=0.5), importance="taylor", data=DATA, loss_fn=cross_entropy)
    assert fired == [] and torch.equal(model[0].weight, before)
    assert result.model[0].out_features == 4


class Merging(nn.Linear):
    """Adds what was learnt to the weight in evaluation mode, and takes it out again, as adapters of low rank do."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.down, self.up = nn.Parameter(torch.randn(2, inputs)), nn.Parameter(torch.randn(outputs, 2))
        self.merged = False

    def train(self, mode: bool = True) -> nn.Module:
        if mode == self.merged:
            self.weight.data += (self.up @ self.down).detach() * (-1 if mode else 1)
            self.merged = not mode
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if self.merged else super().forward(x) + x @ self.down.T @ self.up.T


@pytest.mark.parametrize("steps", [1, 2])
def test_layers_that_write_to_their_weights_in_evaluation_mode_write_to_a_copy(steps: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Merging(6, 16), nn.ReLU(), Merging(16, 3))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    result = hfp.prune(model, X, hfp.Budget(ratio=0.5), steps=steps)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    model.load_state_dict({name: before[name] * mask for name, mask in result.index_map.masks().items()})
    assert result.model[0].out_features == 8
    assert torch.allclose(result.model(X), model(X), atol=1e-5)
    assert torch.allclose(result.model.eval()(X), model.eval()(X), atol=1e-5)


def test_a_forward_pass_that_writes_to_a_parameter_writes_to_a_copy() -> None:
    class Averages(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
            self.mean = nn.Parameter(torch.zeros(6), requires_grad=False)

        def forward(self, x: Tensor) -> Tensor:
            self.mean.lerp_(x.mean(0), 0.5)
            return self.layers(x)

    model = Averages()
    with pytest.raises(MapError, match="lerp computes something else"):
        hfp.prune(model, X, hfp.Budget(ratio=0.5))
    assert not model.mean.any()


def test_models_that_draw_at_random_leave_all_random_states_as_they_were() -> None:
    class Draws(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            random.random(), np.random.rand(), torch.rand(1)
            return super().forward(x)

    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    expected = random.random(), np.random.rand(), torch.rand(1)
    model = Draws(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    hfp.prune(model, X, hfp.Budget(macs=0.5), ranking="measured", data=DATA, loss_fn=cross_entropy)
    assert (random.random(), np.random.rand(), torch.rand(1)) == expected


@pytest.mark.parametrize("ranking", ["layer", "measured"])
def test_weights_that_are_computed_are_scored_as_in_evaluation_mode(ranking: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(spectral_norm(nn.Linear(6, 8)), nn.ReLU(), spectral_norm(nn.Linear(8, 3)))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    options = {"ranking": ranking, "data": DATA, "loss_fn": cross_entropy, "repair": None}
    hfp.prune(model, X, hfp.Budget(macs=0.5), **options)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(module.training for module in model.modules())
