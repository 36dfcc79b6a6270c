"""Cut out what the kernel of a convolution lies on."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional
from torch.nn.modules.conv import _ConvNd


def windows(layer: _ConvNd, entering: Tensor) -> Tensor:
    """Return every patch of a convolution's input that its kernel is multiplied with, as a view of the padded input.

    Args:
        layer: a convolution that is not transposed.
        entering: its input, `[batch, in, *size]`.

    Returns:
        The patches, `[batch, in, *positions, *kernel]`.
    """
    padding = layer._reversed_padding_repeated_twice
    if any(padding):
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        entering = functional.pad(entering, padding, mode=mode)
    return sliding(entering, layer.kernel_size, layer.stride, layer.dilation)


def per_dimension(sizes: Sequence[int], dims: int) -> Sequence[int]:
    """Return an option of a convolution with one value per dimension; PyTorch may give one value for all of them."""
    return sizes if len(sizes) == dims else [*sizes] * dims


def sliding(entering: Tensor, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> Tensor:
    """Return every patch of an input that a kernel lies on, as a view.

    Args:
        entering: the padded input, `[batch, in, *size]`.
        kernel: the kernel's size in each dimension.
        stride: the steps between patches.
        dilation: the steps between the entries of a patch.

    Returns:
        The patches, `[batch, in, *positions, *kernel]`.
    """
    for dim, (size, step, apart) in enumerate(zip(kernel, stride, dilation, strict=True), start=2):
        entering = entering.unfold(dim, (size - 1) * apart + 1, step)[..., ::apart]
    return entering


def columns(layer: _ConvNd, entering: Tensor) -> Tensor:
    """Return the patches of `windows` as `[batch, in * kernel, positions]`, in the order of the weight's entries."""
    dims = len(layer.kernel_size)
    found = windows(layer, entering)
    positions, kernel = tuple(range(2, 2 + dims)), tuple(range(2 + dims, 2 + 2 * dims))
    return found.permute(0, 1, *kernel, *positions).flatten(1, 1 + dims).flatten(2)
