"""Turn what surgery left of a tensor into one kept-index vector per dimension.

The tensor holds its own flat indices, so what is left of it shows which entries were kept.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hfp.reconstruct.errors import MapError
from hfp.reconstruct.maps.index_map import TensorMap, positions

_EXACT_FLOAT32 = 2**24  # float32 holds every integer up to this one exactly


def flat_indices(tensor: Tensor) -> Tensor:
    """Return a CPU tensor of `tensor`'s shape in which every entry holds its own flat index, exactly.

    Floating-point tensors get a floating-point result, since torch-pruning wraps what it cuts in `nn.Parameter`. All
    others get int64.
    """
    if not tensor.is_floating_point():
        dtype = torch.int64
    else:
        dtype = torch.float32 if tensor.numel() <= _EXACT_FLOAT32 else torch.float64
    return torch.arange(tensor.numel(), dtype=dtype).view(tensor.shape)


def factor(left: Tensor, shape: tuple[int, ...], where: str) -> TensorMap:
    """Return the map of a cut, verified entry by entry.

    Args:
        left: what surgery left of `flat_indices` of a tensor.
        shape: the tensor's full shape.
        where: what errors call the tensor.

    Raises:
        MapError: what is left is empty, reordered, repeated, or no product of one index set per dimension.
    """
    if left.dim() != len(shape) or left.numel() == 0:
        raise MapError(
            f"{where}: surgery turned shape {list(shape)} into {list(left.shape)}; expected {len(shape)} non-empty "
            "dimensions. Keep at least one channel in every layer"
        )
    try:
        found = TensorMap(shape, tuple(_line(left, shape, dim) for dim in range(len(shape))))
    except MapError as error:
        raise MapError(
            f"{where}: surgery reordered or repeated channels; only removal can be mapped ({error})"
        ) from None
    rows = positions(shape[:1], found.kept[:1]) * math.prod(shape[1:])
    columns = positions(shape[1:], found.kept[1:])
    if not torch.equal(rows.to(left.dtype)[:, None] + columns.to(left.dtype), left.reshape(rows.numel(), -1)):
        raise MapError(
            f"{where}: what surgery left of shape {list(shape)}, shape {list(left.shape)}, is not one set of kept "
            "indices per dimension; this pruning cannot be mapped. Leave the layer out of it (ignored_layers)"
        )
    return found


def _line(left: Tensor, shape: tuple[int, ...], dim: int) -> Tensor:
    """Return the indices of dimension `dim` along the line through the first entry."""
    line = left[tuple(slice(None) if other == dim else 0 for other in range(left.dim()))]
    return (line.detach().to(torch.int64) // math.prod(shape[dim + 1 :])) % shape[dim]
