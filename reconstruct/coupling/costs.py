"""Count what a plan costs from the kept channels alone, without building or running anything.

A trace knows the lines of every tensor. The size of each dimension in the compact model is therefore the number of
labels on its line that are left. Multiply-accumulates come from PyTorch's own formulas of the traced convolutions and
products at these sizes. Parameters and bytes are products of sizes.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from hfp.layers.flops import Formula, shapes
from hfp.reconstruct.coupling.rules.labels import Array, Line, Lines


@dataclass(frozen=True)
class Sized:
    """A tensor without its contents.

    Args:
        shape: its sizes in the full model.
        lines: the line of each dimension.
    """

    shape: tuple[int, ...]
    lines: Lines


@dataclass(frozen=True)
class CountedCall:
    """A convolution or product of the forward pass.

    Args:
        formula: a function that returns its floating-point operations.
        given: what it was called with, by position or name, and its result as ``out_shape``. `Sized` stands for
            tensors.
    """

    formula: Formula
    given: Mapping[int | str, Any]


def counted_call(
    formula: Formula, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any, lines: Callable[[Tensor], Lines]
) -> CountedCall:
    """Note a call; `lines` gives the lines of a tensor."""
    given: dict[Any, Any] = {**dict(enumerate(args)), **kwargs, "out_shape": result}
    sized = {
        key: Sized(tuple(value.shape), lines(value)) if isinstance(value, Tensor) else shapes(value)
        for key, value in given.items()
    }
    return CountedCall(formula, sized)


class _Dimensions:
    """All dimensions that may become smaller; those that lose the same indices count as one."""

    def __init__(self, of: Array) -> None:
        self._of = of
        self._places: dict[bytes, int] = {}
        self._lines: list[Array] = []
        self._seen: dict[int, int] = {}

    def place(self, line: Line) -> int:
        """Return the number of a dimension, or -1 if its size is fixed."""
        if line is None:
            return -1
        if id(line) not in self._seen:
            classes = self._of[line]
            place = self._seen[id(line)] = self._places.setdefault(classes.tobytes(), len(self._lines))
            if place == len(self._lines):
                self._lines.append(classes)
        return self._seen[id(line)]

    def counter(self) -> Callable[[NDArray[np.bool_]], list[int]]:
        """Return a function from the removed classes to the sizes of all dimensions."""
        if not self._lines:
            return lambda gone: []
        starts = np.cumsum([0, *(len(line) for line in self._lines[:-1])])
        classes = np.concatenate(self._lines)
        return lambda gone: np.add.reduceat(~gone[classes], starts, dtype=np.int64).tolist()


class PlanCosts:
    """Counts what is left of a model without building it.

    Args:
        of: the class of every label.
        counted: the convolutions and products.
        model: the full model.
        tensors: the lines of the model's tensors, by name.
    """

    def __init__(
        self, of: Array, counted: Sequence[CountedCall], model: nn.Module, tensors: Mapping[str, Lines]
    ) -> None:
        dimensions = _Dimensions(of)
        self._calls = [_Call(call, dimensions) for call in counted]
        state = {id(tensor): (name, tensor) for name, tensor in model.state_dict(keep_vars=True).items()}
        self._parameters: Counter[tuple[int, ...]] = Counter()
        for name, parameter in model.named_parameters():
            self._parameters.update(_part(tensors, name, parameter, 1, dimensions))
        self._state: Counter[tuple[int, ...]] = Counter()
        for name, tensor in state.values():
            self._state.update(_part(tensors, name, tensor, tensor.element_size(), dimensions))
        self._sizes = dimensions.counter()

    def __call__(self, gone: NDArray[np.bool_]) -> dict[str, int]:
        """Return the multiply-accumulates ("macs"), parameters ("params") and bytes ("bytes") without these classes."""
        sizes = self._sizes(gone)
        return {
            "macs": sum(call.flops(sizes) for call in self._calls) // 2,
            "params": _entries(self._parameters, sizes),
            "bytes": _entries(self._state, sizes),
        }


class _Call:
    """A call whose operations are counted once for each set of sizes."""

    def __init__(self, call: CountedCall, dimensions: _Dimensions) -> None:
        self._call = call
        self._places = {
            key: tuple(map(dimensions.place, value.lines))
            for key, value in call.given.items()
            if isinstance(value, Sized)
        }
        self._varied = sorted({place for places in self._places.values() for place in places} - {-1})
        self._known: dict[tuple[int, ...], int] = {}

    def flops(self, sizes: Sequence[int]) -> int:
        """Return the floating-point operations when dimensions have these sizes."""
        key = tuple([sizes[place] for place in self._varied])
        if key not in self._known:
            self._known[key] = self._counted(sizes)
        return self._known[key]

    def _counted(self, sizes: Sequence[int]) -> int:
        given = dict(self._call.given)
        for key, places in self._places.items():
            full = given[key].shape
            given[key] = tuple([size if place < 0 else sizes[place] for place, size in zip(places, full, strict=True)])
        args = [given.pop(position) for position in range(sum(isinstance(key, int) for key in given))]
        return self._call.formula(*args, **{str(name): value for name, value in given.items()})


def _part(
    tensors: Mapping[str, Lines], name: str, tensor: Any, unit: int, dimensions: _Dimensions
) -> dict[tuple[int, ...], int]:
    """Return what each entry counts, times all sizes that stay, by the places of the other sizes."""
    places = [dimensions.place(line) for line in tensors.get(name, (None,) * tensor.dim())]
    fixed = math.prod(size for place, size in zip(places, tensor.shape, strict=True) if place < 0)
    return {tuple(place for place in places if place >= 0): unit * fixed}


def _entries(parts: Mapping[tuple[int, ...], int], sizes: Sequence[int]) -> int:
    return sum(unit * math.prod([sizes[place] for place in places]) for places, unit in parts.items())
