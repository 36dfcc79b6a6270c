"""Record the Kronecker factors of convolution and linear layers.

They are the second moments of what enters a layer and of the gradient of what leaves it. They have one row per sample
and position. A row is a token of a linear layer, or the patch of the input that a convolution's kernel lies on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from hfp.importance.capture.moments import wide
from hfp.importance.errors import CriterionError
from hfp.layers.patches import windows
from hfp.layers.products import PRODUCTS, channel_dim, groups_of, is_plain

WIDEST = 1 << 14
"""Factors are kept for layers of at most this many columns, whose second moment takes 2 GiB."""
_BLOCKS = 4
_FEWEST = 256  # with fewer columns, halving the work of a symmetric product saves no time


@dataclass(frozen=True)
class Factors:
    """Sums over rows of one layer's inputs and of products, in float64.

    Args:
        rows: how many rows were summed.
        total: the sum of the inputs, `[groups, columns]`. Columns are in / groups * kernel, in the order of the
            weight's.
        square: the sum of products of inputs, `[groups, columns, columns]`.
        gradient: the sum of products of the output's gradient, `[groups, out / groups, out / groups]`.
    """

    rows: int
    total: Tensor
    square: Tensor
    gradient: Tensor

    def plus(self, other: Factors) -> Factors:
        """Return the sums over both sets of rows."""
        return Factors(
            self.rows + other.rows,
            self.total + other.total.to(self.total),
            self.square + other.square.to(self.square),
            self.gradient + other.gradient.to(self.gradient),
        )

    def moment(self, centred: bool) -> Tensor:
        """Return the mean of products of inputs, or their covariance, `[groups, columns, columns]`."""
        rows = max(self.rows, 1)  # a layer that was given no rows has sums of 0
        mean = self.total / rows
        square = self.square / rows
        return square - mean[:, :, None] * mean[:, None] if centred else square


@dataclass
class FactorRecorder:
    """Collects one batch's factors by the layer's name.

    Args:
        widths: a layer's outputs per group.
        entered: how many rows entered a layer, their sum, and the sum of their products.
        left: the sum of products of the gradient at a layer's output.
        refused: why a layer has no factors.
        layers: the layers that are recorded.
    """

    widths: dict[str, int] = field(default_factory=dict)
    entered: dict[str, tuple[int, Tensor, Tensor]] = field(default_factory=dict)
    left: dict[str, Tensor] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    layers: dict[str, nn.Module] = field(default_factory=dict)

    def output(self, forward: Callable[[], Any]) -> Any:
        """Return the output of a forward pass, in which weights of layers that are not called have gradients."""
        output = forward()
        uncalled = [self.layers[name] for name in self.layers.keys() - self.entered.keys()]
        waiting = [p for layer in uncalled for p in layer.parameters(recurse=False) if not p.requires_grad]
        if not waiting:
            return output
        for parameter in waiting:
            parameter.requires_grad_(True)
        self.entered = {}
        return forward()

    def _settle_uncalled(self) -> None:
        """Give factors of zero to layers that nothing uses, and refuse those whose weights are used without a call."""
        for name in self.layers.keys() - self.entered.keys():
            layer: Any = self.layers[name]
            used = any(parameter.grad is not None for parameter in layer.parameters(recurse=False))
            for parameter in layer.parameters(recurse=False):
                parameter.grad = None
            if used:
                self.refused[name] = f"layer {name!r} never ran by itself while accumulating, but its weight is used"
            elif layer._parameters.get("weight") is not None:
                groups, out, columns = as_matrix(layer).shape
                zeros = torch.zeros(groups, columns, columns, dtype=torch.float64, device=layer.weight.device)
                self.widths[name] = out
                self.entered[name] = 0, zeros[:, 0], zeros

    def take(self, scale: float) -> dict[str, Factors]:
        """Return the factors of the batch whose backward pass is just done.

        The differentiated quantity had been multiplied by `scale`.

        Raises:
            CriterionError: something of a layer is not finite (the message names the first such layer), or no layer was
                reached.
        """
        if self.left:
            self._settle_uncalled()
        entered, left = self.entered, self.left
        self.entered, self.left = {}, {}
        if not left:
            raise CriterionError("no gradient reached a convolution or linear layer: there is nothing to score")
        found = {}
        for name, (rows, total, square) in entered.items():
            groups = len(square)
            gradient = left[name] / scale**2 if name in left else square.new_zeros(groups, *[self.widths[name]] * 2)
            for what, value in (("input", square), ("gradient at the output", gradient)):
                if not torch.isfinite(value).all():
                    raise CriterionError(f"the {what} of layer {name!r} is not finite: check the data and weights")
            found[name] = Factors(rows, total, square, gradient)
        return found

    def enter(self, name: str, columns: Tensor) -> None:
        """Add the inputs of one call, `[groups, columns, rows]`."""
        rows, total, square = columns.shape[2], exact(columns.sum(2)), exact(gram(columns))
        if name in self.entered:
            before = self.entered[name]
            rows, total, square = before[0] + rows, before[1] + total, before[2] + square
        self.entered[name] = rows, total, square

    def leave(self, name: str, columns: Tensor) -> None:
        """Add the output's gradient of one call, `[groups, out / groups, rows]`."""
        square = exact(gram(columns))
        self.left[name] = self.left[name] + square if name in self.left else square


@contextmanager
def recording_factors(model: nn.Module) -> Iterator[FactorRecorder]:
    """Fill the recorder with every forward and backward of the model, while open.

    Parameters need not require gradients.
    """
    recorder = FactorRecorder()
    handles = []
    try:
        for name, module in model.named_modules():
            if isinstance(module, PRODUCTS):
                reason = _why_not(module)
                if reason is None:
                    recorder.layers[name] = module
                    handles.append(module.register_forward_hook(_record(recorder, name)))
                else:
                    recorder.refused[name] = f"layer {name!r} ({type(module).__name__}) {reason}"
        yield recorder
    finally:
        for handle in handles:
            handle.remove()


def as_matrix(layer: Any) -> Tensor:
    """Return a layer's weight in float64, `[groups, out / groups, columns]`."""
    weight: Tensor = exact(layer.weight.detach()).flatten(1)
    return weight.unflatten(0, (groups_of(layer), -1))


def exact(x: Tensor) -> Tensor:
    """Return the tensor in double precision, on the CPU where its device has none."""
    return (x.cpu() if x.device.type == "mps" else x).double()


def gram(columns: Tensor) -> Tensor:
    """Compute `X X^T` of `[groups, columns, rows]`.

    A part of the lower half is copied from the upper.
    """
    width = columns.shape[1]
    if width < _FEWEST:
        return columns @ columns.transpose(1, 2)
    found = columns.new_empty(len(columns), width, width)
    step = -(-width // _BLOCKS)
    for start in range(0, width, step):
        stop = min(start + step, width)
        part = torch.matmul(columns[:, start:stop], columns[:, start:].transpose(1, 2))
        found[:, start:stop, start:] = part
        found[:, stop:, start:stop] = part[:, :, stop - start :].transpose(1, 2)
    return found


def patches(layer: Any, entering: Tensor) -> Tensor:
    """Return what goes into each product, `[groups, columns, rows]`, in the order of the weight's entries."""
    if isinstance(layer, nn.Linear):
        return entering.flatten(0, -2).T[None]
    dims = len(layer.kernel_size)
    found = windows(layer, entering)
    found = found.movedim(tuple(range(2 + dims, 2 + 2 * dims)), tuple(range(2, 2 + dims)))
    return found.movedim(0, dims + 1).flatten(dims + 1).flatten(0, dims).unflatten(0, (layer.groups, -1))


def _why_not(layer: nn.Module) -> str | None:
    if not is_plain(layer):
        return (
            "is not a plain product of its input's patches and its weight, and only such layers have Kronecker factors"
        )
    weight = getattr(layer, "weight")  # noqa: B009
    columns = weight.flatten(1).shape[1]
    if weight.is_complex():
        return "has complex weights, and Kronecker factors are of real ones"
    if columns > WIDEST:
        return f"reads {columns} values at once, more than the {WIDEST} for which a second moment is kept"
    return None


def _record(recorder: FactorRecorder, name: str) -> Any:
    def hook(module: Any, args: tuple[Any, ...], output: Tensor) -> Tensor:
        if not torch.is_grad_enabled() or not args or not isinstance(output, Tensor):
            return output  # in a checkpoint's first pass: the layer runs again for its gradient
        groups, dim = groups_of(module), channel_dim(module)
        recorder.widths[name] = output.shape[dim] // groups
        with torch.no_grad():
            recorder.enter(name, patches(module, wide(_batched(module, args[0].detach()))))

        def leave(grad: Tensor) -> None:
            rows = wide(_batched(module, grad.detach())).movedim(dim, 0).flatten(1)
            recorder.leave(name, rows.unflatten(0, (groups, -1)))

        written = output if output.requires_grad else output.detach().requires_grad_()
        written.register_hook(leave)
        return written.clone() if written.is_leaf else written  # the next layer may write to it in place

    return hook


def _batched(layer: Any, x: Tensor) -> Tensor:
    """Return the tensor with a dimension of samples, which is added where there was one sample alone."""
    least = 2 if isinstance(layer, nn.Linear) else len(layer.kernel_size) + 2
    return x[None] if x.dim() < least else x
