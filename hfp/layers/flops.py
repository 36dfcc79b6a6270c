"""PyTorch's formulas for the floating-point operations of convolutions and products."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry

Formula = Callable[..., int]


def formula_of(function: Any) -> Formula | None:
    """Return the formula of an operation, or None if it has none.

    The formula takes the operation's arguments, with shapes in place of tensors, and the result's shape as
    ``out_shape``. It returns floating-point operations, two for each multiply-accumulate.
    """
    packet = getattr(function, "_overloadpacket", None)
    own = _OWN.get(getattr(packet, "_qualified_op_name", ""))
    if own is not None:
        return own
    found = flop_registry.get(packet)
    return getattr(found, "__wrapped__", None)  # formulas that read more than shapes are not wrapped


def _grouped_mm(left: Sequence[int], *_: Any, out_shape: Sequence[int], **__: Any) -> int:
    """Count a product of rows with the weights of each row's expert, which PyTorch has no formula for."""
    return 2 * left[-1] * math.prod(out_shape)


def _added_product(_: Sequence[int], left: Sequence[int], *__: Any, out_shape: Sequence[int], **___: Any) -> int:
    """Count a product that is added to something; PyTorch's formula looks for tensors again, which takes long."""
    return 2 * left[-1] * math.prod(out_shape)


def _product_with_vector(left: Sequence[int], *_: Any, **__: Any) -> int:
    """Count a matrix or a vector times a vector, which PyTorch has no formula for."""
    return 2 * math.prod(left)


def _product_of_three(*args: Any, **_: Any) -> int:
    """Count what a bilinear layer computes: the outer product of two inputs, and its product with the weight."""
    factors = [_unsqueezed(shape, places) for shape, places in zip(args[:3], args[3:6], strict=True)]
    return 2 * math.prod(map(max, *factors))


def _unsqueezed(shape: Sequence[int], places: Sequence[int]) -> list[int]:
    wide = list(shape)
    for place in places:
        wide.insert(place, 1)
    return wide


_OWN: dict[str, Formula] = {
    "aten::_grouped_mm": _grouped_mm,
    "aten::_trilinear": _product_of_three,
    "aten::addmm": _added_product,
    "aten::baddbmm": _added_product,
    "aten::mv": _product_with_vector,
    "aten::dot": _product_with_vector,
}


def flops(formula: Formula, args: Any, kwargs: Mapping[str, Any], result: Any) -> int:
    """Return the floating-point operations of one call."""
    given = {name: shapes(value) for name, value in kwargs.items()}
    return formula(*shapes(args), **given, out_shape=shapes(result))


def shapes(value: Any) -> Any:
    """Return the shape of a tensor, and of every one in a list or tuple; everything else as it is."""
    if isinstance(value, Tensor):
        return tuple(value.shape)
    return tuple(map(shapes, value)) if isinstance(value, list | tuple) else value


@cache
def is_composite(function: Any) -> bool:
    """Return whether PyTorch computes the operation by other ones, which are then what has to be counted."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(function.name(), "CompositeImplicitAutograd")
