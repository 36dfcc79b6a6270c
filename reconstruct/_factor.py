"""What surgery left of a tensor that holds its own flat indices, as one kept-index vector per dimension."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hfp.reconstruct.errors import MapError

_EXACT_FLOAT32 = 2**24  # every integer up to here has its own float32


def flat_indices(tensor: Tensor) -> Tensor:
    """A CPU tensor of `tensor`'s shape in which every entry holds its own flat index, exactly.

    Floating-point tensors get a floating-point result (torch-pruning wraps what it cuts in `nn.Parameter`),
    all others int64.
    """
    if not tensor.is_floating_point():
        dtype = torch.int64
    else:
        dtype = torch.float32 if tensor.numel() <= _EXACT_FLOAT32 else torch.float64
    return torch.arange(tensor.numel(), dtype=dtype).view(tensor.shape)


def factor(left: Tensor, shape: tuple[int, ...], where: str) -> tuple[Tensor | None, ...]:
    """Kept indices per dimension, given what is `left` of `flat_indices` of a tensor of `shape`.

    None stands for a dimension that is kept whole. The factoring is verified entry by entry.

    Raises:
        MapError: what is left is empty, reordered, repeated, or no product of one index set per dimension.
    """
    if left.dim() != len(shape) or left.numel() == 0:
        raise MapError(
            f"{where}: surgery turned shape {list(shape)} into {list(left.shape)}; expected {len(shape)} non-empty "
            "dimensions. Keep at least one channel in every layer"
        )
    kept: list[Tensor | None] = []
    expected = torch.zeros((1,) * left.dim(), dtype=left.dtype)
    for dim, full in enumerate(shape):
        stride = math.prod(shape[dim + 1 :])
        line = left[tuple(slice(None) if other == dim else 0 for other in range(left.dim()))]
        indices = (line.detach().to(torch.int64) // stride) % full
        if indices.numel() > 1 and not bool((indices[1:] > indices[:-1]).all()):
            raise MapError(
                f"{where}: surgery reordered or repeated indices of dimension {dim}; only removal can be mapped"
            )
        expected = expected + (indices * stride).to(left.dtype).view(
            [-1 if other == dim else 1 for other in range(left.dim())]
        )
        kept.append(None if indices.numel() == full else indices)
    if not torch.equal(expected, left):
        raise MapError(
            f"{where}: what surgery left of shape {list(shape)}, shape {list(left.shape)}, is not one set of kept "
            "indices per dimension; this pruning cannot be mapped. Leave the layer out of it (ignored_layers)"
        )
    return tuple(kept)
