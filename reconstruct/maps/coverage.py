"""Count how much client weight held each entry of a full state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from hfp.reconstruct.maps.index_map import TensorMap

_PENDING = 64  # the maps of this many clients are collected, so that one matrix product serves them all


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
        clients = _Pending(self._pending, self._device)
        same: dict[tuple[int, ...], Tensor] = {}
        for name, shape in self._shapes.items():
            maps = [tensors[name] for tensors, _ in self._pending]
            key = (*shape, *(id(kept) for tensor in maps for kept in tensor.kept))
            if key not in same:
                same[key] = clients.product(shape, maps)
            self._held[name] = self._held[name] + same[key] if name in self._held else same[key]
        self._pending.clear()


class _Pending:
    """Sums up the masks of some clients, tensor by tensor; dimensions that keep the same channels share their masks."""

    def __init__(self, clients: Sequence[tuple[Mapping[str, TensorMap], float]], device: torch.device) -> None:
        self._weights = torch.tensor([weight for _, weight in clients], dtype=torch.float64, device=device)
        self._device = device
        self._lines: dict[tuple[int, ...], Tensor] = {}

    def product(self, shape: tuple[int, ...], maps: Sequence[TensorMap]) -> Tensor:
        """Compute Σ weight · mask over the clients' maps of one tensor."""
        last = max(tensor.last_cut for tensor in maps)
        if last < 0:
            return self._weights.sum().view([1] * len(shape))
        rows, *others = (self._masks(maps, dim) for dim in range(last + 1))
        columns = others[0] if others else torch.ones(len(maps), 1, dtype=torch.float64, device=self._device)
        for line in others[1:]:
            columns = (columns[:, :, None] * line[:, None, :]).flatten(1)
        held = (rows * self._weights[:, None]).T @ columns
        return held.view(shape[: last + 1] + (1,) * (len(shape) - last - 1))

    def _masks(self, maps: Sequence[TensorMap], dim: int) -> Tensor:
        """Return the masks of one dimension, float64 [clients, size]."""
        size = maps[0].shape[dim]
        key = (size, *(id(tensor.kept[dim]) for tensor in maps))
        if key not in self._lines:
            masks = torch.zeros(len(maps), size, dtype=torch.float64, device=self._device)
            for mask, tensor in zip(masks, maps, strict=True):
                kept = tensor.kept_on(self._device)[dim]
                mask.fill_(1.0) if kept is None else mask.index_fill_(0, kept, 1.0)
            self._lines[key] = masks
        return self._lines[key]
