"""Results on the meta device of the operations that PyTorch takes longest for.

A trace or a trial on the meta device asks for shapes only. For these operations PyTorch finds them by going through
every step of the computation in Python, which takes longer than computing with small numbers, or only for some types.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

_LIKE_THE_INPUT = frozenset({
    "relu", "hardtanh", "hardswish", "hardsigmoid", "gelu", "mish", "elu", "leaky_relu", "softplus",
})  # fmt: skip


def meta_result(function: Any, name: str, args: Sequence[Any], kwargs: Any) -> Any:
    """Return what an operation returns on the meta device, or None where PyTorch should be asked.

    PyTorch is asked where shapes don't fit, so that it raises its error.

    Args:
        function: the operation.
        name: its name without namespace and in-place mark.
        args: its arguments.
        kwargs: its arguments by name.
    """
    given = args[0] if args else None
    if not isinstance(given, Tensor) or not given.is_meta or not given.is_floating_point():
        return None
    if name in _LIKE_THE_INPUT and len(function._schema.returns) == 1 and "out" not in (kwargs or {}):
        return given if function._schema.is_mutable else torch.empty_like(given)
    found = _OTHERS.get(name)
    return None if found is None else found(*args)


def _batch_norm(given: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor] | None:
    size = given.shape[1]
    if any(isinstance(other, Tensor) and len(other) != size for other in others):
        return None
    return torch.empty_like(given), given.new_empty(size), given.new_empty(size)


def _layer_norm(given: Tensor, shape: Sequence[int], *_: Any) -> tuple[Tensor, Tensor, Tensor] | None:
    if list(given.shape[-len(shape) :]) != list(shape):
        return None
    over = [*given.shape[: given.dim() - len(shape)], *(1 for _ in shape)]
    whole = torch.empty_like(given, memory_format=torch.contiguous_format)
    return whole, given.new_empty(over), given.new_empty(over)


def _grouped_mm(given: Tensor, right: Tensor, *_: Any) -> Tensor | None:
    """PyTorch has shapes of half precision only."""
    fits = (given.dim(), right.dim()) == (2, 3) and given.shape[1] == right.shape[1]
    return given.new_empty(given.shape[0], right.shape[2]) if fits else None


_OTHERS: dict[str, Callable[..., Any]] = {
    "native_batch_norm": _batch_norm,
    "native_layer_norm": _layer_norm,
    "_grouped_mm": _grouped_mm,
}
