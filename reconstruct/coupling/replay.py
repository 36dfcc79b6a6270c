"""Make what a forward pass draws at random or decides the same in all runs that are compared.

A compact model computes other numbers than its parent. It would therefore also draw other random numbers, pass other
rows over a threshold or send tokens to other experts. None of this depends on how many channels are left. What one run
drew and decided is recorded, and later runs are given the part of it that is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from hfp.reconstruct.coupling.rules.labels import Lines
from hfp.reconstruct.coupling.rules.registry import tensors_in

UNINITIALISED = frozenset({"empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided", "empty_permuted"})
"""The results of these operations hold whatever was in memory."""

_SEARCHES = frozenset({"_unique", "_unique2", "unique_dim", "unique_consecutive"})  # the number of their results varies

Decision = Any
"""A decision is a tensor for each result of a call, or None where the call only computes; or it is one plain number."""


def decision(function: Any, name: str, args: Any, kwargs: Any, result: Any) -> Decision:
    """Return what a call drew or decided; None when it only computed.

    A decision is a result of whole numbers or truth values that was made from floating-point ones, such as a
    comparison, an order or a choice.
    """
    outputs = list(tensors_in(result))
    if any(output.is_meta for output in outputs):
        return None
    if not any(tensor.is_floating_point() for tensor in tensors_in([args, kwargs])):
        return [_copied(output) for output in outputs] if _is_random(function, name) and outputs else None
    if not outputs:
        return result if isinstance(result, bool | int | float) else None
    if _is_random(function, name) or name in _SEARCHES:
        return [_copied(output) for output in outputs]
    found = [None if output.is_floating_point() or output.is_complex() else _copied(output) for output in outputs]
    return None if all(output is None for output in found) else found


def replayed(
    result: Any, decided: Decision, lines: Sequence[Lines], args: Any, kept: Callable[[Tensor, Lines], Tensor]
) -> Any:
    """Return a call's result with what was decided in place of what the call decided itself.

    Args:
        result: what the call computed.
        decided: what an earlier run decided, of full size.
        lines: the lines of the results.
        args: the arguments of the call. A result that is one of them was changed in place.
        kept: a function that returns the part of a full tensor that is left, given its lines.
    """
    if not isinstance(decided, list):
        return decided
    found = iter(_each(result, decided, lines, list(tensors_in(args)), kept))
    if isinstance(result, Tensor):
        return next(found)
    return type(result)(next(found) if isinstance(item, Tensor) else item for item in result)


def _each(
    result: Any,
    decided: Sequence[Tensor | None],
    lines: Sequence[Lines],
    given: Sequence[Tensor],
    kept: Callable[[Tensor, Lines], Tensor],
) -> Iterator[Tensor]:
    for output, full, each in zip(tensors_in(result), decided, lines, strict=True):
        part = output if full is None else kept(full, each)
        if full is None or not _agree(output, part, each):
            yield output
        elif any(output is tensor for tensor in given):
            yield output.copy_(part)
        else:
            yield part.clone()


def _agree(output: Tensor, part: Tensor, lines: Lines) -> bool:
    """Return whether two tensors have the same shape but for dimensions that never lose channels."""
    if output.dim() != part.dim():
        return False
    sizes = zip(output.shape, part.shape, lines, strict=True)
    return all(line is None or mine == theirs for mine, theirs, line in sizes)


def _is_random(function: Any, name: str) -> bool:
    return torch.Tag.nondeterministic_seeded in function.tags and "attention" not in name


def _copied(tensor: Tensor) -> Tensor:
    return tensor.detach().clone()
