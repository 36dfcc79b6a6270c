"""Batch-norm recalibration: running statistics of the compact model itself, in place of those of the full one."""

from __future__ import annotations

from collections.abc import Iterable
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


def recalibrate(model: nn.Module, batches: Iterable[Any]) -> tuple[list[str], int]:
    """Replace every batch-norm layer's running statistics by means over the batches.

    Each layer normalises a batch by the batch's own statistics while it runs, so that later layers see recalibrated
    inputs. All other layers are in evaluation mode. A batch counts by its samples. The cost is one forward pass.

    Returns:
        The names of the layers, and the number of samples.

    Raises:
        InputError: a batch has one value per channel, of which there is no variance.
    """
    norms = normalisations(model)
    if not norms:
        return [], 0
    sums: dict[str, list[Tensor]] = {}
    samples, run = 0, ForwardPass()
    kept = {name: (module.momentum, _copied(module.num_batches_tracked)) for name, module in norms.items()}
    before = {name: [getattr(module, key).clone() for key in STATISTICS] for name, module in norms.items()}
    complete = False
    with torch.no_grad(), batch_statistics(model):
        for module in norms.values():
            module.momentum = 1.0  # the running statistics become those of the last batch
        try:
            for batch, size in run.batches(batches, model):
                _forward(run, model, batch, size)
                for name, module in norms.items():
                    pair = [getattr(module, key).double() * size for key in STATISTICS]
                    so_far = sums.get(name, [0.0, 0.0])
                    sums[name] = [old + new for old, new in zip(so_far, pair, strict=True)]
                samples += size
            complete = True
        finally:
            for name, module in norms.items():
                module.momentum, module.num_batches_tracked = kept[name]
                if not complete:
                    for key, value in zip(STATISTICS, before[name], strict=True):
                        getattr(module, key).copy_(value)
    for name, module in norms.items():
        for key, total in zip(STATISTICS, sums[name], strict=True):
            getattr(module, key).copy_(total / samples)
    return list(norms), samples


def _copied(count: Tensor | None) -> Tensor | None:
    return None if count is None else count.clone()


def _forward(run: ForwardPass, model: nn.Module, batch: Any, size: int) -> None:
    try:
        run.output(model, batch)
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise InputError(f"batch-norm can't be recalibrated on a batch of {size}: give larger batches") from error
