"""Register the rules by which operations pass labels on, and share what rules have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor

from hfp.reconstruct.coupling.rules.labels import Labels, Line, Lines

Stated = tuple[int, Line]
"""This is a size that a call was given as a number, and the dimension whose size it is."""


@dataclass(frozen=True)
class Operation:
    """One call of an operation during a trace, as its rule sees it.

    Args:
        name: the operation's name, without namespace and in-place mark.
        outputs: the tensors that it returned.
        where: the module that it ran in.
    """

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: tuple[Tensor, ...]
    where: str
    labels: Labels
    lines: Callable[[Tensor], Lines]
    notes: Notes

    def argument(self, position: int, key: str, default: Any = None) -> Any:
        """Return an argument by its place or its name."""
        return self.kwargs[key] if key in self.kwargs else self.args[position] if len(self.args) > position else default

    @property
    def tensors(self) -> list[Tensor]:
        """Return all tensor arguments, in order."""
        return list(tensors_in([self.args, self.kwargs]))

    def fix(self, line: Line, reason: str) -> None:
        """Note that nothing of this line can be removed, because of this operation."""
        self.labels.fix(line, f"{self.where}: {reason}")

    def unify(self, first: Line, second: Line, reason: str) -> Line:
        """Note that two lines lose the same indices, and return the line of both."""
        return self.labels.unify(first, second, f"{self.where}: {reason}")

    def without(self, tensor: Tensor, dims: Iterable[int], reason: str) -> Lines:
        """Fix some dimensions of a tensor, and return the tensor's lines."""
        lines = list(self.lines(tensor))
        for dim in dims:
            self.fix(lines[dim], reason)
            lines[dim] = None
        return tuple(lines)


@dataclass
class Notes:
    """What a rule says about its call beside the labels.

    Args:
        stated: the sizes that the caller wrote as numbers.
        reduces: whether the call computes a statistic over a dimension that can lose indices.
        channels: the lines (in, out) of a grouped convolution.
        choice: the dimension of which the last result holds the numbers of chosen indices.
        followed: whether a rule knows the operation.
    """

    stated: list[Stated]
    reduces: bool = False
    channels: tuple[Line, Line] | None = None
    groups: Line = None
    choice: Line = None
    followed: bool = True


OperationRule = Callable[[Operation], "Lines | list[Lines]"]
AnyRule = TypeVar("AnyRule", bound=OperationRule)
OPERATION_RULES: dict[str, OperationRule] = {}


def rule(*names: str) -> Callable[[AnyRule], AnyRule]:
    """Register a rule for the operations of these names."""

    def register(function: AnyRule) -> AnyRule:
        OPERATION_RULES.update(dict.fromkeys(names, function))
        return function

    return register


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested tuples, lists and dicts."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors_in(item)


def broadcast(op: Operation, tensors: Sequence[Tensor], shape: Sequence[int]) -> Lines:
    """Return the lines of an element-by-element result, where aligned dimensions lose the same indices."""
    found: list[Line] = []
    for offset in range(1, len(shape) + 1):
        size = shape[-offset]
        lines = [
            op.lines(tensor)[-offset]
            for tensor in tensors
            if tensor.dim() >= offset and (tensor.shape[-offset] == size or size == 1)
        ]
        line = lines[0] if lines else None
        for other in lines[1:]:
            line = op.unify(line, other, f"{op.name} combines it with a dimension of fixed size")
        found.append(line)
    return tuple(reversed(found))


def every(op: Operation, lines: Lines) -> list[Lines]:
    """Return the same lines for each output."""
    return [lines] * len(op.outputs)


def opaque(op: Operation) -> list[Lines]:
    """Fix everything that an operation touches, where no rule knows the operation."""
    op.notes.followed = False
    for tensor in op.tensors:
        op.without(tensor, range(len(op.lines(tensor))), f"the operation {op.name} is not followed")
    return [(None,) * output.dim() for output in op.outputs]


def pointwise(op: Operation) -> list[Lines]:
    """The operation works element by element, with broadcasting."""
    return every(op, broadcast(op, op.tensors, op.outputs[0].shape))
