"""Count how much client weight held each entry of a full state."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from hfp.reconstruct.maps.index_map import TensorMap

_PENDING = 64  # the maps of this many clients are collected, so that one matrix product serves them all

WeightedMap = tuple[TensorMap, float]


class Coverage:
    """A running sum over clients of weight times mask, for every tensor of a state.

    A mask is a product of one index set per dimension, so the sum is a product of matrices [channels, clients] and
    [clients, channels]. Trailing dimensions that nobody cuts (convolution kernels) are never expanded. Sums are on
    `device`.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], device: torch.device | None = None) -> None:
        self._shapes, self._device = dict(shapes), device or torch.device("cpu")
        self._pending: list[tuple[Mapping[str, TensorMap], float]] = []
        self._held: dict[str, Tensor] = {}

    def add(self, tensors: Mapping[str, TensorMap], weight: float) -> None:
        """Count one client that held the kept entries of these maps."""
        self._pending.append((tensors, weight))
        if len(self._pending) == _PENDING:
            self._flush()

    def held(self) -> dict[str, Tensor]:
        """Return the summed weights in float64, broadcastable to the shape of each tensor."""
        self._flush()
        return dict(self._held)

    def _flush(self) -> None:
        if not self._pending:
            return
        masks: dict[tuple[int, int], Tensor] = {}
        same: dict[tuple[int, ...], Tensor] = {}
        for name, shape in self._shapes.items():
            maps = [(tensors[name], weight) for tensors, weight in self._pending]
            key = (*shape, *(id(kept) for tensor, _ in maps for kept in tensor.kept))
            if key not in same:
                same[key] = _product(shape, maps, masks, self._device)
            self._held[name] = self._held[name] + same[key] if name in self._held else same[key]
        self._pending.clear()


def _product(
    shape: tuple[int, ...], maps: Sequence[WeightedMap], masks: dict[tuple[int, int], Tensor], device: torch.device
) -> Tensor:
    """Compute Σ weight · mask over the maps of one tensor."""
    weights = torch.tensor([weight for _, weight in maps], dtype=torch.float64, device=device)
    last = max(tensor.last_cut for tensor, _ in maps)
    if last < 0:
        return weights.sum().view([1] * len(shape))
    rows = torch.stack([_mask(tensor.kept_on(device)[0], shape[0], masks, device) for tensor, _ in maps])
    columns = torch.stack(
        [_flat_mask(tensor.kept_on(device)[1 : last + 1], shape[1 : last + 1], masks, device) for tensor, _ in maps]
    )
    held = (rows * weights[:, None]).T @ columns
    return held.view(shape[: last + 1] + (1,) * (len(shape) - last - 1))


def _flat_mask(
    kept: tuple[Tensor | None, ...],
    sizes: tuple[int, ...],
    masks: dict[tuple[int, int], Tensor],
    device: torch.device,
) -> Tensor:
    found = torch.ones(1, dtype=torch.float64, device=device)
    for size, indices in zip(sizes, kept, strict=True):
        found = (found[:, None] * _mask(indices, size, masks, device)).view(math.prod(found.shape) * size)
    return found


def _mask(kept: Tensor | None, size: int, masks: dict[tuple[int, int], Tensor], device: torch.device) -> Tensor:
    key = (id(kept), size)
    if key not in masks:
        whole = torch.ones(size, dtype=torch.float64, device=device)
        masks[key] = whole if kept is None else torch.zeros_like(whole).index_fill_(0, kept, 1.0)
    return masks[key]
