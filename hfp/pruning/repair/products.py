"""Recognise, among the operations of a forward pass, the products of inputs with one of the model's weights.

A `Product` puts matrix products and convolutions into one form: the outputs are rows `[groups, rows, out]` that equal
inputs `[groups, rows, in]` times a weight `[groups, out, in]`, one row per sample and position.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from hfp.layers.patches import per_dimension, sliding
from hfp.pruning.repair.weights import Cut

aten = torch.ops.aten


@dataclass(frozen=True)
class Product(ABC):
    """One product.

    Args:
        weight: the weight as the operation reads it. Writing to it writes to the model.
        bias: what the operation adds to every row, `[out]`; None where it adds nothing.
        entering: what is multiplied with the weight; None once it is not needed any more.
    """

    weight: Tensor
    bias: Tensor | None
    entering: Tensor | None

    @property
    @abstractmethod
    def out_dims(self) -> tuple[int, ...]:
        """The dimensions of the weight that count output channels; the first counts groups where there are two."""

    @property
    @abstractmethod
    def in_dim(self) -> int:
        """The dimension of the weight that counts input channels."""

    @abstractmethod
    def rows_of(self, weight: Tensor) -> Tensor:
        """Arrange a weight as `[groups, out, in]`."""

    @abstractmethod
    def write(self, rows: Tensor) -> None:
        """Write `[groups, out, in]` to the model's weight, in place."""

    @abstractmethod
    def arranged(self, output: Tensor) -> Tensor:
        """Arrange the outputs as `[*positions, *channels]`, one dimension of channels per output dimension."""

    @abstractmethod
    def channel_dim(self, output: Tensor) -> int:
        """Return the dimension of the outputs, not arranged, that counts channels."""

    @abstractmethod
    def inputs(self, places: tuple[Tensor, ...]) -> Tensor:
        """Select the inputs of some places, `[groups, rows, in]`."""

    def alone(self) -> Product:
        """Return the product without the inputs, which need memory."""
        return replace(self, entering=None)

    def kept(self, dims: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
        """Turn kept indices of the weight's output dimensions into those of the outputs' channels."""
        return dims

    def target(self, arranged: Tensor, cut: Cut) -> Tensor:
        """Select from a full product's outputs, arranged, what the compact product should give."""
        dims = self.kept([cut.left(dim) for dim in self.out_dims])
        for dim, kept in enumerate(dims, start=-len(dims)):
            if kept is not None:
                arranged = arranged.index_select(dim, kept.to(arranged.device))
        return arranged

    def grouped(self, rows: Tensor) -> Tensor:
        """Split rows `[rows, channels]` into `[groups, rows, out]`."""
        return rows.unflatten(1, (self.groups, -1)).movedim(1, 0)

    @property
    @abstractmethod
    def groups(self) -> int:
        """How many groups of channels are multiplied apart."""

    @abstractmethod
    def shifted(self, output: Tensor, shift: Tensor) -> Tensor:
        """Add a constant per channel, `[groups, out]`, to the outputs."""


@dataclass(frozen=True)
class Matrix(Product):
    """A matrix product `[rows, in] x [in, out]`, or one per group, `[groups, rows, in] x [groups, in, out]`.

    Args:
        turned: whether the operation has the weight on the left, so that its outputs are transposed.
        folded: whether the operation repeats one weight over its groups, which are then rows.
    """

    turned: bool = False
    folded: bool = False

    @property
    def out_dims(self) -> tuple[int, ...]:
        """The last dimension, and the first where there are groups."""
        return (0, 2) if self.weight.dim() == 3 else (1,)

    @property
    def in_dim(self) -> int:
        """The dimension before the last."""
        return self.weight.dim() - 2

    @property
    def groups(self) -> int:
        """The first of three dimensions."""
        return len(self.weight) if self.weight.dim() == 3 else 1

    def rows_of(self, weight: Tensor) -> Tensor:
        """Transpose it."""
        return weight.mT if weight.dim() == 3 else weight.mT[None]

    def write(self, rows: Tensor) -> None:
        """Transpose them back."""
        self.weight.copy_(rows.mT if self.weight.dim() == 3 else rows[0].mT)

    def arranged(self, output: Tensor) -> Tensor:
        """Put groups behind rows."""
        output = output.mT if self.turned else output
        if self.folded:
            return output.flatten(0, -2)
        return output.movedim(0, 1) if self.weight.dim() == 3 else output.flatten(0, -2)

    def channel_dim(self, output: Tensor) -> int:
        """Return the last, or the one before it where outputs are transposed."""
        return output.dim() - 1 - self.turned

    def inputs(self, places: tuple[Tensor, ...]) -> Tensor:
        """Pick rows."""
        assert self.entering is not None
        if self.weight.dim() == 3:
            return self.entering[:, places[0]]
        return self.entering.flatten(0, -2)[places[0]][None]

    def shifted(self, output: Tensor, shift: Tensor) -> Tensor:
        """Add to the last dimension, or to the one before it where outputs are transposed."""
        shift = shift.to(output)[:, None, :] if self.weight.dim() == 3 else shift.to(output).flatten()
        if not self.turned:
            return output + shift
        return output + (shift.mT if shift.dim() == 3 else shift[:, None])


@dataclass(frozen=True)
class Convolution(Product):
    """A convolution, also a grouped or transposed one. The other arguments are those of the operation."""

    stride: Sequence[int] = ()
    padding: Sequence[int] = ()
    dilation: Sequence[int] = ()
    transposed: bool = False
    output_padding: Sequence[int] = ()
    convolution_groups: int = 1

    @property
    def out_dims(self) -> tuple[int, ...]:
        """The first dimension; transposed, the second."""
        return (1,) if self.transposed else (0,)

    @property
    def in_dim(self) -> int:
        """The second dimension; transposed, the first."""
        return 0 if self.transposed else 1

    @property
    def groups(self) -> int:
        """As the operation was told."""
        return self.convolution_groups

    def rows_of(self, weight: Tensor) -> Tensor:
        """Put a kernel's entries behind its input channels; a transposed convolution's kernel is turned round."""
        if not self.transposed:
            return weight.flatten(1).unflatten(0, (self.groups, -1))
        kernel = tuple(range(2, weight.dim()))
        return weight.flip(kernel).unflatten(0, (self.groups, -1)).transpose(1, 2).flatten(2)

    def write(self, rows: Tensor) -> None:
        """Undo `rows_of`."""
        shape = self.weight.shape
        if not self.transposed:
            self.weight.copy_(rows.flatten(0, 1).reshape(shape))
            return
        each_in = shape[0] // self.groups
        back = rows.unflatten(2, (each_in, *shape[2:])).transpose(1, 2).flatten(0, 1)
        self.weight.copy_(back.flip(tuple(range(2, len(shape)))))

    def arranged(self, output: Tensor) -> Tensor:
        """Put channels last."""
        return output.movedim(1, -1)

    def channel_dim(self, output: Tensor) -> int:
        """Return 1."""
        return 1

    def kept(self, dims: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
        """Repeat a transposed convolution's kept outputs in every group; all groups have to be there."""
        (kept,) = dims
        if not self.transposed or self.groups == 1 or kept is None:
            return dims
        starts = torch.arange(self.groups) * self.weight.shape[1]
        return ((starts[:, None] + kept).flatten(),)

    def inputs(self, places: tuple[Tensor, ...]) -> Tensor:
        """Take what the kernel lies on at some places; it is a view until the rows are picked."""
        assert self.entering is not None
        kernel = self.weight.shape[2:]
        if self.transposed:
            wide, stride = self._spread(self.entering, kernel), (1,) * len(kernel)
        else:
            wide = functional.pad(self.entering, [size for one in reversed(self.padding) for size in (one, one)])
            stride = tuple(self.stride)
        patches = sliding(wide, kernel, stride, self.dilation).movedim(1, len(places))[places]
        return patches.unflatten(1, (self.groups, -1)).flatten(2).movedim(1, 0)

    def _spread(self, entering: Tensor, kernel: Sequence[int]) -> Tensor:
        """Return what an ordinary convolution of stride 1 reads to give the same: the input with zeros between."""
        sizes = [(size - 1) * step + 1 for size, step in zip(entering.shape[2:], self.stride, strict=True)]
        found = entering.new_zeros(*entering.shape[:2], *sizes)
        places = (slice(None), slice(None), *(slice(None, None, step) for step in self.stride))
        found[places] = entering
        wings: list[int] = []
        for size, step, pad, more in zip(kernel, self.dilation, self.padding, self.output_padding, strict=True):
            wing = step * (size - 1) - pad
            wings = [wing, wing + more, *wings]
        return functional.pad(found, wings)

    def shifted(self, output: Tensor, shift: Tensor) -> Tensor:
        """Add to dimension 1."""
        return output + shift.to(output).view(-1, *(1 for _ in self.weight.shape[2:]))


IsWeight = Callable[[Any], bool]


def product_of(packet: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], is_weight: IsWeight) -> Product | None:
    """Return the product that an operation computes; None where it computes something else.

    Args:
        packet: the operation of torch.ops.aten.
        args: what it is called with.
        kwargs: its keywords.
        is_weight: tells whether a tensor is a weight of the model, or a part of one.
    """
    make = _MAKERS.get(packet)
    return None if make is None or kwargs else make(args, is_weight)


def _linear(args: tuple[Any, ...], is_weight: IsWeight) -> Product | None:
    entering, weight, bias = (*args, None)[:3]
    return Matrix(weight.mT, bias, entering) if is_weight(weight) and weight.dim() == 2 else None


def _product(args: tuple[Any, ...], is_weight: IsWeight, bias: Tensor | None = None) -> Product | None:
    left, right = args[:2]
    if not is_weight(left) and not is_weight(right):
        return None
    turned = not is_weight(right)
    entering, weight = (right.mT, left.mT) if turned else (left, right)
    if turned and bias is not None:
        return None  # it is added along the rows
    if weight.dim() == 3 and weight.stride(0) == 0 and len(weight) > 1:
        return Matrix(weight[0], bias, entering, turned, folded=True)
    return Matrix(weight, bias, entering, turned)


def _product_plus(args: tuple[Any, ...], is_weight: IsWeight) -> Product | None:
    bias = args[0]
    return _product(args[1:3], is_weight, bias) if bias.dim() == 1 and bias.stride(0) == 1 else None


def _convolution(args: tuple[Any, ...], is_weight: IsWeight) -> Product | None:
    entering, weight, bias, stride, padding, dilation, transposed, output_padding, groups = args[:9]
    if not is_weight(weight):
        return None
    stride, padding, dilation, output_padding = (
        per_dimension(each, weight.dim() - 2) for each in (stride, padding, dilation, output_padding)
    )
    return Convolution(weight, bias, entering, stride, padding, dilation, transposed, output_padding, groups)


_MAKERS: dict[Any, Callable[[tuple[Any, ...], IsWeight], Product | None]] = {
    aten.linear: _linear,
    aten.mm: _product,
    aten.bmm: _product,
    aten.addmm: _product_plus,
    aten.convolution: _convolution,
}
