"""Which batch-norm statistics the global model is evaluated with.

A submodel's running statistics are those of a network with fewer inputs, so their average does not describe the full
model. Training uses each batch's own statistics, so a policy changes only the evaluation. Under the policies `local`
(SiloBN, Andreux et al. 2020, arXiv 2008.07424) and `batch`, the state that a run ends with has the statistics of
`aggregate`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from hfp.layers.calling import modes_kept


def has_statistics(model: nn.Module) -> bool:
    """Tell whether any layer keeps running statistics, so that a policy makes a difference."""
    return any(_tracks(module) for module in model.modules())


def estimate(model: nn.Module, batches: Iterable[Tensor]) -> dict[str, Tensor]:
    """Measure the mean and variance of the inputs of every batch-norm layer, by state name.

    Every sample counts the same, and a variance is the mean of the batches' own. The model's running statistics are
    replaced, and its mode is left as it was. The cost is one forward pass of all batches. A layer that the model has
    under several names has its statistics under each.
    """
    layers = [module for module in model.modules() if isinstance(module, _BatchNorm) and _tracks(module)]
    if not layers:
        return {}
    for layer in layers:
        layer.reset_running_stats()
    with modes_kept(model), _momentum_kept(layers), torch.no_grad():
        model.train()
        seen = 0
        for batch in batches:
            seen += len(batch)
            for layer in layers:
                layer.momentum = len(batch) / seen  # so that in the end every sample counts the same
            model(batch)
    state = model.state_dict()
    return {name: state[name].clone() for name in statistics_names(model)}


def statistics_names(model: nn.Module) -> list[str]:
    """Return the names that batch-norm's statistics have in the model's state, in the order of its modules.

    Other layers, such as instance norm, may keep running statistics too, which nothing estimates anew.
    """
    return [
        f"{name}.{which}".lstrip(".")
        for name, module in model.named_modules(remove_duplicate=False)
        if _tracks(module)
        for which in ("running_mean", "running_var")
    ]


@contextmanager
def _momentum_kept(layers: Sequence[_BatchNorm]) -> Iterator[None]:
    momenta = [layer.momentum for layer in layers]
    try:
        yield
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum


@contextmanager
def batch_statistics(model: nn.Module) -> Iterator[None]:
    """Put the model into evaluation mode while inside, except batch-norm, which uses each batch's own statistics.

    The running statistics change meanwhile, so give the model copies of them. Its modes are restored at the end.
    """
    with modes_kept(model):
        for module in model.modules():
            module.training = isinstance(module, _BatchNorm)
        yield


class Pool:
    """Pools clients' statistics exactly, one client at a time, by ``var = Σ p (var_k + mean_k²) - mean²``."""

    def __init__(self) -> None:
        self._first: dict[str, Tensor] = {}
        self._second: dict[str, Tensor] = {}
        self._weight = 0.0

    def add(self, statistics: Mapping[str, Tensor], weight: float) -> None:
        """Add one client's `estimate` with a weight, such as its number of samples."""
        for name, mean in statistics.items():
            if not name.endswith("running_mean"):
                continue
            mean = mean.double()
            variance = statistics[name.removesuffix("mean") + "var"].double()
            self._first[name] = self._first.get(name, 0) + weight * mean
            self._second[name] = self._second.get(name, 0) + weight * (variance + mean.square())
        self._weight += weight

    def result(self) -> dict[str, Tensor]:
        """Return the pooled statistics in float32, by state name."""
        pooled = {}
        for name, first in self._first.items():
            mean = first / self._weight
            pooled[name] = mean.float()
            pooled[name.removesuffix("mean") + "var"] = (
                (self._second[name] / self._weight - mean.square()).clamp(min=0).to(torch.float32)
            )
        return pooled


def _tracks(module: nn.Module) -> bool:
    return isinstance(module, _BatchNorm) and module.running_mean is not None
