"""What runs a model leaves its buffers as they were, however its forward pass changes them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import hfp
from hfp.costs.memory import PeakBytesCounter
from hfp.data import from_tensors
from hfp.importance import create
from hfp.layers.calling import results
from hfp.pruning.export import export_onnx


class Counting(nn.Module):
    """A network that counts its calls in three ways, and keeps what its first layer computed."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 16), nn.Linear(16, 3)
        for name in ("added", "replaced"):
            self.register_buffer(name, torch.zeros(()))
        self.register_buffer("repeated", torch.ones(1).expand(6))

    def forward(self, samples: Tensor) -> Tensor:
        self.added += 1
        self.replaced = self.replaced + 1
        self.features = self.first(samples * self.repeated)
        return self.last(self.features.relu())


SAMPLES, LABELS = torch.randn(8, 6), torch.arange(8) % 3


def recorded(model: nn.Module, path: Path) -> None:
    with hfp.reconstruct.record(model, SAMPLES):
        pass


def exported(model: nn.Module, path: Path) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    export_onnx(model, SAMPLES, path / "model.onnx")


def scored(model: nn.Module, path: Path) -> None:
    create("group-fisher").accumulate(model, [(SAMPLES, LABELS)], cross_entropy)


def pruned(model: nn.Module, path: Path) -> None:
    hfp.prune(model, SAMPLES, hfp.Budget(params=0.5))


@pytest.mark.parametrize("work", [recorded, exported, scored, pruned])
def test_buffers_that_a_forward_pass_changes_are_put_back(work, tmp_path: Path) -> None:
    model = Counting()
    before = dict(model.named_buffers())
    work(model, tmp_path)
    assert dict(model.named_buffers()) == before
    assert (model.added.item(), model.replaced.item()) == (0, 0)


@pytest.mark.parametrize("method", ["prunefl", "fedprox"])
def test_a_model_that_keeps_what_it_computed_is_trained_by_methods_that_count_memory(method: str) -> None:
    data = from_tensors(SAMPLES, LABELS, SAMPLES, LABELS)
    model = Counting()
    model(SAMPLES)
    run = hfp.simulate(hfp.Experiment(method, model=model, dataset=data, clients=2, rounds=1, head_start=1.0))
    assert len(run.history) == 1
    assert PeakBytesCounter(SAMPLES[:1])(model, 4) > 0


def test_a_given_module_that_can_not_be_copied_is_told_in_a_line() -> None:
    model = Counting()
    model.cache = {"features": model(SAMPLES)}
    experiment = hfp.Experiment(model=model, dataset=from_tensors(SAMPLES, LABELS, SAMPLES, LABELS), clients=2)
    with pytest.raises(hfp.InputError, match="the given Counting can't be copied .*give a function that makes it"):
        hfp.simulate(experiment)


class Made(Mapping):
    """A mapping that makes its values when they are asked for."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def __getitem__(self, key: str) -> list[Tensor]:
        return [self.tensor]

    def __iter__(self) -> Iterator[str]:
        return iter("a")

    def __len__(self) -> int:
        return 1


def test_tensors_are_found_in_values_that_are_made_when_they_are_asked_for() -> None:
    tensors = [torch.tensor(number) for number in range(8)]
    assert results([Made(tensor) for tensor in tensors]) == tensors
