"""Make one pass over somebody's batches with any model, any loss and any output."""

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
from hfp.layers.calling import call

Loss = Callable[..., Tensor]
Forward = Callable[[Any, Any], Any]
HALF_SCALE = 1024.0  # float16 rounds gradients below 6e-8 to zero


@dataclass(frozen=True, kw_only=True)
class ForwardPass:
    """How to compute a model's outputs over batches.

    Args:
        forward: called as `forward(model, batch)`, it returns the output. It serves batches that are not (inputs,
            target) pairs.
        autocast: the type in which mixed precision computes (`torch.bfloat16` or `torch.float16`). None leaves the
            precision alone.
        progress: whether to show a progress bar on standard error.

    Raises:
        CriterionError: `forward` cannot be called, or there is no mixed precision in that type.
    """

    forward: Forward | None = None
    autocast: torch.dtype | None = None
    progress: bool = False

    def __post_init__(self) -> None:
        if self.forward is not None and not callable(self.forward):
            raise CriterionError(
                f"forward must be callable as forward(model, batch), not {type(self.forward).__name__}"
            )
        if self.autocast not in (None, torch.bfloat16, torch.float16):
            raise CriterionError(f"autocast is torch.bfloat16, torch.float16 or None, not {self.autocast!r}")

    def batches(self, batches: Iterable[Any], model: nn.Module) -> Iterator[tuple[Any, int]]:
        """Yield (batch on the model's device, number of samples in it), in order.

        Raises:
            CriterionError: there is no batch at all, one batch in place of several, or a batch holds no tensor.
        """
        reason = not_batches(batches, "batches")
        if reason is not None:
            raise CriterionError(reason)
        device = device_of(model)
        count = 0
        shown = track(batches, "accumulating", console=Console(stderr=True), disable=not self.progress)
        for count, batch in enumerate(shown, start=1):
            moved = mapped(batch, lambda tensor: _ordinary(tensor).to(device))
            size = samples_in(moved)
            if size == 0:
                raise CriterionError(f"batch {count} ({type(batch).__name__}) holds no tensor with samples in it")
            yield moved, size
        if count == 0:
            raise CriterionError("there is no batch to accumulate: the loader is empty, or an iterator that is used up")

    def output(self, model: Callable[..., Any], batch: Any) -> Any:
        """Return the model's output for one batch."""
        with self._precision(batch):
            if self.forward is not None:
                return self.forward(model, batch)
            inputs = batch[0] if isinstance(batch, tuple) else batch
            return call(model, inputs)

    def _precision(self, batch: Any) -> AbstractContextManager[Any]:
        first = first_tensor(batch)
        if self.autocast is None or first is None:
            return nullcontext()
        return torch.autocast(first.device.type, dtype=self.autocast)


@dataclass(frozen=True)
class Pass(ForwardPass):
    """How to compute a model's outputs and their loss over batches.

    Args:
        loss_fn: called as `loss_fn(output, target)`. It returns one value per sample, or one value for the batch. With
            a `forward`, it gets (output, batch).
        reduction: what a loss that returns one value for the batch does over its samples, "mean" or "sum".
        relabel: called as `relabel(output, size)`, it returns a target that replaces the one in the batch.
        forward: as for `ForwardPass`.
        autocast: as for `ForwardPass`.
        progress: as for `ForwardPass`.

    Raises:
        CriterionError: the reduction is unknown, the loss cannot be called, or `ForwardPass` refuses the rest.
    """

    loss_fn: Loss
    reduction: str = "mean"
    relabel: Callable[[Any, int], Any] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.reduction not in ("mean", "sum"):
            raise CriterionError(
                f'reduction is "mean" or "sum", what loss_fn does over a batch, not {self.reduction!r}'
            )
        if not callable(self.loss_fn):
            raise CriterionError(
                f"loss_fn must be callable as loss_fn(output, target), not {type(self.loss_fn).__name__}"
            )

    @property
    def scale(self) -> float:
        """Return the factor of one sample's loss that keeps half precision from losing its gradients."""
        return HALF_SCALE if self.autocast == torch.float16 else 1.0

    def scale_of(self, size: int) -> float:
        """Return the factor of a loss that is summed over so many samples, with which half precision holds the sum."""
        return self.scale / size if self.autocast == torch.float16 else 1.0

    def target(self, output: Any, batch: Any, size: int) -> Any:
        """Return what the loss compares the output with.

        This is what the batch holds beside its inputs, or the labels that `relabel` draws.
        """
        if self.relabel is not None:
            return self.relabel(output, size)
        if self.forward is None and isinstance(batch, tuple) and len(batch) > 1:
            return batch[1] if len(batch) == 2 else batch[1:]
        return batch

    def loss_sum(self, output: Any, target: Any, size: int) -> Tensor:
        """Return the loss summed over a batch's samples, whatever `loss_fn` does over them.

        Raises:
            CriterionError: the loss is neither one value nor one value per sample, is not finite, or does not depend on
                the model.
        """
        total = self.unchecked_loss_sum(output, target, size)
        if not torch.isfinite(total):
            raise CriterionError(f"the loss of a batch of {size} samples is {total.item()}: check the data and weights")
        if not total.requires_grad:
            raise CriterionError(
                "the loss has no gradient in the model: is it detached, or under no_grad or inference_mode?"
            )
        return total

    def unchecked_loss_sum(self, output: Any, target: Any, size: int) -> Tensor:
        """Compute `loss_sum` without looking at its value, which `torch.func` can't do."""
        with self._precision(output):
            loss = self.loss_fn(output, target)
        if not isinstance(loss, Tensor):
            raise CriterionError(f"loss_fn must return a tensor, not {type(loss).__name__}")
        if loss.is_complex():
            raise CriterionError(f"loss_fn must return real numbers, not {loss.dtype}")
        if loss.numel() == 1:
            return loss.reshape(()) * (size if self.reduction == "mean" else 1)
        if loss.shape != (size,):
            raise CriterionError(
                f"loss_fn must return one value, or one per sample [{size}], not shape {list(loss.shape)}"
            )
        return loss.sum()


def not_batches(data: Any, name: str) -> str | None:
    """Return why an argument of this name is no collection of batches, such as one batch alone; None if it may be one.

    A tensor or a data set of batches can't be told from one of samples, so that these pass.
    """
    expected = f"{name} is a list or loader of batches"
    if isinstance(data, str | bytes | Mapping) or not (hasattr(data, "__iter__") or hasattr(data, "__getitem__")):
        return f"{expected}, not {type(data).__name__}"
    if isinstance(data, tuple | list) and len(data) == 2 and all(isinstance(part, Tensor) for part in data):
        inputs, targets = data
        if inputs.dim() != targets.dim() and inputs.shape[:1] == targets.shape[:1]:
            return f"{expected}; found one batch alone: give it as {name}=[batch]"
    return None


def _ordinary(tensor: Tensor) -> Tensor:
    """Return the tensor's values as a tensor that a backward pass may keep, and whose gradient is not the caller's.

    No backward pass may keep a tensor that was made in inference mode, so that one is copied.
    """
    own = (tensor.clone() if tensor.is_inference() else tensor).detach()
    return own.requires_grad_(tensor.requires_grad)  # a model may differentiate its output in its inputs


def device_of(model: nn.Module) -> torch.device:
    """Return the device of the model's first parameter, or of its first buffer.

    Raises:
        CriterionError: the model has neither.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    raise CriterionError(f"{type(model).__name__} has no parameters: there is nothing to score")


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model inside torch.compile or a data-parallel wrapper.

    Estimates are kept under the names of the inner model.
    """
    prefix = wrapper_prefix(model)
    return model.get_submodule(prefix[:-1]) if prefix else model


def wrapper_prefix(model: nn.Module) -> str:
    """Return what a wrapper puts before the names of the model inside, such as "module.".

    Wrappers are those of torch.compile and of data parallelism.
    """
    for attribute in ("_orig_mod", "module"):
        inner = getattr(model, attribute, None)
        wraps = attribute == "_orig_mod" or type(model).__name__ in ("DataParallel", "DistributedDataParallel")
        if wraps and isinstance(inner, nn.Module):
            return f"{attribute}.{wrapper_prefix(inner)}"
    return ""


def mapped(value: Any, function: Callable[[Tensor], Any], other: Callable[[Any], Any] = lambda value: value) -> Any:
    """Apply `function` to every tensor in nested tuples, lists and mappings, and `other` to everything else.

    Lists become tuples. Named tuples keep their names.
    """
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        return {key: mapped(item, function, other) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return like_tuple(value, (mapped(item, function, other) for item in value))
    return other(value)


def like_tuple(value: Any, items: Iterable[Any]) -> tuple[Any, ...]:
    """Return the items as a tuple, with the names of `value` where that is a named tuple."""
    return value._make(items) if hasattr(value, "_make") else tuple(items)


def samples_in(batch: Any) -> int:
    """Return how many samples a batch holds: the rows of its first tensor, or the length of a list of tensors that is a
    model's first argument.
    """
    first = _first_of(_first_of(batch))
    if isinstance(first, tuple) and first and all(isinstance(item, Tensor) for item in first):
        return len(first)
    tensor = first_tensor(batch)
    return 0 if tensor is None or tensor.dim() == 0 else len(tensor)


def _first_of(value: Any) -> Any:
    if isinstance(value, Mapping | tuple) and len(value):
        return next(iter(value.values() if isinstance(value, Mapping) else value))
    return value


def first_tensor(value: Any) -> Tensor | None:
    """Return the first tensor in nested tuples, lists and mappings."""
    if isinstance(value, Tensor):
        return value
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, (tuple, list)) else ()
    return next((found for found in map(first_tensor, items) if found is not None), None)
