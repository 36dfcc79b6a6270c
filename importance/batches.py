"""One pass over somebody's batches: any model, any loss, any output."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

from hfp.importance.errors import CriterionError

Loss = Callable[..., Tensor]
Forward = Callable[[nn.Module, Any], Any]
HALF_SCALE = 1024.0  # float16 loses gradients below 6e-8


@dataclass(frozen=True)
class Pass:
    """How to run a model over batches.

    loss_fn: `loss_fn(output, target)`; returns one value per sample, or one value for the batch.
    reduction: what a loss that is one value for the batch is over its samples, "mean" or "sum".
    forward: `forward(model, batch) -> output` for batches that aren't (inputs, target); the loss then gets (output,
    batch).
    autocast: compute type of mixed precision (`torch.bfloat16`, `torch.float16`); None leaves precision alone.
    progress: show a progress bar on standard error.
    """

    loss_fn: Loss
    reduction: str = "mean"
    forward: Forward | None = None
    autocast: torch.dtype | None = None
    progress: bool = False

    def __post_init__(self) -> None:
        if self.reduction not in ("mean", "sum"):
            raise CriterionError(
                f'reduction is "mean" or "sum" (what loss_fn does over a batch), not {self.reduction!r}'
            )
        if not callable(self.loss_fn):
            raise CriterionError(
                f"loss_fn must be callable as loss_fn(output, target), not {type(self.loss_fn).__name__}"
            )

    @property
    def scale(self) -> float:
        """What the summed loss is multiplied by, so that half precision doesn't lose its gradients."""
        return HALF_SCALE if self.autocast == torch.float16 else 1.0

    def batches(self, batches: Iterable[Any], model: nn.Module) -> Iterator[tuple[Any, int]]:
        """(batch on the model's device, samples in it), in order.

        Raises:
            CriterionError: when there is no batch at all, or a batch holds no tensor.
        """
        device = device_of(model)
        count = 0
        shown = track(batches, "accumulating", console=Console(stderr=True), disable=not self.progress)
        for count, batch in enumerate(shown, start=1):
            moved = _to(batch, device)
            first = _first_tensor(moved)
            if first is None or first.dim() == 0:
                raise CriterionError(f"batch {count} holds no tensor with a batch dimension: {type(batch).__name__}")
            yield moved, len(first)
        if count == 0:
            raise CriterionError(
                "there is no batch to accumulate: the loader is empty (or was an iterator already used up)"
            )

    def output(self, model: nn.Module, batch: Any) -> Any:
        """The model's output for one batch."""
        with self._precision(device_of(model)):
            if self.forward is not None:
                return self.forward(model, batch)
            inputs = batch[0] if isinstance(batch, (tuple, list)) else batch
            if isinstance(inputs, Mapping):
                return model(**inputs)
            return model(*inputs) if isinstance(inputs, (tuple, list)) else model(inputs)

    def loss_sum(self, model: nn.Module, output: Any, batch: Any, size: int) -> Tensor:
        """The loss summed over a batch's samples, whatever `loss_fn` does over them.

        Raises:
            CriterionError: when the loss isn't one value or one per sample, isn't finite, or doesn't depend on the
                model.
        """
        target = batch
        if self.forward is None and isinstance(batch, (tuple, list)) and len(batch) > 1:
            target = batch[1] if len(batch) == 2 else tuple(batch[1:])
        with self._precision(device_of(model)):
            loss = self.loss_fn(output, target)
        if not isinstance(loss, Tensor):
            raise CriterionError(f"loss_fn must return a tensor, not {type(loss).__name__}")
        return summed_over_samples(loss, size, self.reduction)

    def _precision(self, device: torch.device) -> AbstractContextManager[Any]:
        return nullcontext() if self.autocast is None else torch.autocast(device.type, dtype=self.autocast)


def summed_over_samples(loss: Tensor, size: int, reduction: str) -> Tensor:
    """A loss of shape `[]` (a mean or sum over `size` samples) or `[size]` as the sum over samples."""
    if loss.numel() == 1:
        total = loss.reshape(()) * (size if reduction == "mean" else 1)
    elif loss.shape == (size,):
        total = loss.sum()
    else:
        raise CriterionError(f"loss_fn must return one value, or one per sample [{size}], not shape {list(loss.shape)}")
    if not torch.isfinite(total):
        raise CriterionError(
            f"the loss of a batch of {size} samples is {total.item()}; check the data and the model's weights"
        )
    if not total.requires_grad:
        raise CriterionError(
            "the loss has no gradient with respect to the model: is it detached, or under torch.no_grad?"
        )
    return total


def device_of(model: nn.Module) -> torch.device:
    """Where the model's first parameter (or buffer) is.

    Raises:
        CriterionError: when the model has neither.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    raise CriterionError(f"{type(model).__name__} has no parameters: there is nothing to score")


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside torch.compile or a data-parallel wrapper, whose names are the ones that a dependency graph
    knows.
    """
    for attribute in ("_orig_mod", "module"):
        inner = getattr(model, attribute, None)
        wraps = attribute == "_orig_mod" or type(model).__name__ in ("DataParallel", "DistributedDataParallel")
        if wraps and isinstance(inner, nn.Module):
            return unwrapped(inner)
    return model


def _to(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        return {key: _to(item, device) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return tuple(_to(item, device) for item in value)
    return value


def _first_tensor(value: Any) -> Tensor | None:
    if isinstance(value, Tensor):
        return value
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, (tuple, list)) else ()
    return next((found for found in map(_first_tensor, items) if found is not None), None)
