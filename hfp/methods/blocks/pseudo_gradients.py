"""Reads the change of clients' models in a round as gradients, and sums them in the full model's coordinates."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from hfp.methods.interface.values import TrainedPart


class PseudoGradients:
    """Weighted means of ``g_k = -(w_k - w)/(η E)``, of its squares, and of which clients hold an entry.

    Clients are added one at a time, in the memory of three full models. All results are divided by the weight of all
    clients. A client that took no step counts as one without a gradient.

    Args:
        parameters: the full model's parameters, for their names and shapes.
    """

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        self._gradient, self._square, self._coverage = (
            {name: torch.zeros_like(tensor) for name, tensor in parameters.items()} for _ in range(3)
        )
        self._weight = 0.0
        self._moved, self._moved_square = 0.0, 0.0

    def add(self, trained_part: TrainedPart, weight: float, distance: float) -> None:
        """Add one client.

        Args:
            trained_part: what it trained.
            weight: its weight ``p_k``.
            distance: ``η E``, the length of its steps together, 0 when it took none.
        """
        self._weight += weight
        if not distance:
            return
        self._moved += weight
        self._moved_square += weight**2
        for name, total in self._gradient.items():
            place = trained_part.index_map.tensors[name]
            gradient = trained_part.before[name] - trained_part.after[name]
            held = torch.ones((), dtype=total.dtype, device=total.device)
            if name in trained_part.active:
                held = trained_part.active[name].to(total)
                gradient = gradient * held
            gradient = gradient / distance
            place.add(gradient, total, weight)
            place.add(gradient.square(), self._square[name], weight)
            place.add(held.expand(place.compact_shape), self._coverage[name], weight)

    def gradient(self) -> dict[str, Tensor]:
        """Return ``Σ p_k g_k`` by parameter, over the clients that hold an entry."""
        return self._mean(self._gradient)

    def square(self) -> dict[str, Tensor]:
        """Return ``Σ p_k g_k²`` by parameter, over the clients that hold an entry."""
        return self._mean(self._square)

    def coverage(self) -> dict[str, Tensor]:
        """Return ``Σ p_k`` by parameter, over the clients that hold an entry."""
        return self._mean(self._coverage)

    def unheld(self) -> float:
        """Return the share of the entries that no client holds."""
        entries = sum(coverage.numel() for coverage in self._coverage.values())
        return sum(int((coverage == 0).sum()) for coverage in self._coverage.values()) / entries

    def agreement(self) -> float:
        """Return how alike the clients' gradients are: 1 if they are equal, about 0 if they have nothing in common.

        The value is ``(ρ - s) / (1 - s)``, but at least 0, with ``ρ = ‖Σ p_k g_k‖² / Σ p_k ‖g_k‖²`` and ``s = Σ p_k²``.
        ``ρ`` equals ``s`` when gradients of one length are at right angles. Only clients that took a step count, and
        only the entries that all of these hold. With fewer than two such clients, or no such entry, the value is 0.
        """
        if not self._moved:
            return 0.0
        alone = self._moved_square / self._moved**2
        joint = single = 0.0
        for name, coverage in self._coverage.items():
            core = coverage >= self._moved * (1 - 1e-6)
            joint += float(self._gradient[name][core].double().square().sum())
            single += float(self._square[name][core].double().sum())
        if alone >= 1 or not single:
            return 0.0
        return max(0.0, (joint / (self._moved * single) - alone) / (1 - alone))

    def _mean(self, sums: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: total / max(self._weight, 1e-12) for name, total in sums.items()}
