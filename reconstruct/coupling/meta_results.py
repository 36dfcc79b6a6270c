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
    "relu", "hardtanh", "hardswish", "hardsigmoid", "gelu", "mish", "elu", "leaky_relu", "softplus", "sigmoid", "silu",
    "tanh",
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
        return given if function._schema.is_mutable else _like(given)
    found = _OTHERS.get(name)
    return None if found is None or kwargs or function._schema.is_mutable else found(*args)


def _like(given: Tensor) -> Tensor:
    """Return what `torch.empty_like` returns, which takes several times as long on this device."""
    found = given.new_empty(given.shape)
    return found if found.stride() == given.stride() else torch.empty_like(given)


def _arithmetic(given: Tensor, other: Any) -> Tensor | None:
    """PyTorch is asked about types that differ and about unusual strides."""
    if not _in_order(given):
        return None
    if isinstance(other, int | float):
        return given.new_empty(given.shape)
    if not isinstance(other, Tensor) or not other.is_meta or other.dtype != given.dtype or not _in_order(other):
        return None
    sizes = _broadcast(given.shape, other.shape)
    return given.new_empty(sizes) if sizes else None


def _in_order(given: Tensor) -> bool:
    """Return whether a tensor has the strides of a new one; `is_contiguous` allows others where sizes are 1."""
    expected = 1
    for size, stride in zip(reversed(given.shape), reversed(given.stride()), strict=True):
        if stride != expected:
            return False
        expected *= size
    return True


def _broadcast(first: Sequence[int], second: Sequence[int]) -> list[int]:
    """Return the common shape of two, or nothing where they have none or differ in length."""
    pairs = list(zip(first, second, strict=False))
    fit = len(first) == len(second) and all(one == other or 1 in (one, other) for one, other in pairs)
    return [other if one == 1 else one for one, other in pairs] if fit else []


def _mean(given: Tensor, dims: Any = None, keep: bool = False) -> Tensor | None:
    if not isinstance(dims, list | tuple) or not dims or not _in_order(given):
        return None
    gone = {dim % given.dim() for dim in dims}
    sizes = [1 if dim in gone else size for dim, size in enumerate(given.shape) if keep or dim not in gone]
    return given.new_empty(sizes)


def _linear(bias: Tensor, left: Tensor, right: Tensor) -> Tensor | None:
    fits = left.shape[1] == right.shape[0] and bias.shape == right.shape[1:]
    return left.new_empty(left.shape[0], right.shape[1]) if fits else None


def _batch_norm(given: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor] | None:
    size = given.shape[1]
    if any(isinstance(other, Tensor) and len(other) != size for other in others):
        return None
    return _like(given), given.new_empty(size), given.new_empty(size)


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
    "add": _arithmetic,
    "sub": _arithmetic,
    "mul": _arithmetic,
    "div": _arithmetic,
    "mean": _mean,
    "addmm": _linear,
    "native_batch_norm": _batch_norm,
    "native_layer_norm": _layer_norm,
    "_grouped_mm": _grouped_mm,
}
