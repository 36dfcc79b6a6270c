"""Batch-norm recalibration: running statistics of the compact model itself, in place of those of the full one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from hfp.errors import InputError
from hfp.importance.capture.batches import ForwardPass
from hfp.training.batch_norm import batch_statistics

STATISTICS = ("running_mean", "running_var")


def normalisations(model: nn.Module) -> dict[str, _BatchNorm]:
    """The batch-norm layers with running statistics, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    }


def recalibrate(model: nn.Module, batches: Iterable[Any]) -> tuple[list[str], list[str], int]:
    """Replace every batch-norm layer's running statistics by means over the batches.

    Each layer normalises a batch by the batch's own statistics while it runs, so that later layers see recalibrated
    inputs. All other layers are in evaluation mode. A batch counts by its samples. The cost is one forward pass.

    Returns:
        The names of the layers, those of layers whose statistics would not be finite and stay, and the number of
            samples.

    Raises:
        InputError: a batch has one value per channel, of which there is no variance.
    """
    norms = normalisations(model)
    if not norms:
        return [], [], 0
    with torch.no_grad(), batch_statistics(model), _statistics_kept(norms.values()):
        sums, samples = _summed(model, norms, batches)
    broken = [name for name in norms if not all(bool(torch.isfinite(total).all()) for total in sums[name].values())]
    done = [name for name in norms if name not in broken]
    with torch.no_grad():
        for name in done:
            for key, total in sums[name].items():
                getattr(norms[name], key).copy_(total / samples)
    return done, broken, samples


@contextmanager
def _statistics_kept(norms: Iterable[_BatchNorm]) -> Iterator[None]:
    """Let the running statistics be those of the last batch inside, and put back what was there at the end."""
    before = [
        (module, module.momentum, {key: buffer.clone() for key, buffer in module.named_buffers(recurse=False)})
        for module in norms
    ]
    try:
        for module, _, _ in before:
            module.momentum = 1.0
        yield
    finally:
        for module, momentum, buffers in before:
            module.momentum = momentum
            for key, value in buffers.items():
                getattr(module, key).copy_(value)


def _summed(
    model: nn.Module, norms: Mapping[str, _BatchNorm], batches: Iterable[Any]
) -> tuple[dict[str, dict[str, Tensor]], int]:
    """Run the batches; return the sums over samples of each layer's statistics in float64, and the samples."""
    sums: dict[str, dict[str, Tensor]] = {name: {} for name in norms}
    samples, run = 0, ForwardPass()
    for batch, size in run.batches(batches, model):
        _forward(run, model, batch, size)
        for name, module in norms.items():
            for key in STATISTICS:
                sums[name][key] = sums[name].get(key, 0.0) + getattr(module, key).double() * size
        samples += size
    return sums, samples


def _forward(run: ForwardPass, model: nn.Module, batch: Any, size: int) -> None:
    try:
        run.output(model, batch)
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise InputError(f"batch-norm can't be recalibrated on a batch of {size}: give larger batches") from error
