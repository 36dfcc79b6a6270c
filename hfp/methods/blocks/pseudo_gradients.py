"""Reads the change of clients' models in a round as gradients, and sums them in the full model's coordinates."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from hfp.methods.interface.values import TrainedPart
from hfp.reconstruct.maps.coverage import Coverage


class PseudoGradients:
    """Weighted means of ``g_k = -(w_k - w)/(η E)``, of its squares, and of which clients hold an entry.

    Clients are added one at a time, in the memory of two full models. Clients that train single entries of a tensor
    take that of a third. All results are divided by the weight of all clients. A client that took no step counts as
    one without a gradient.

    Args:
        parameters: the full model's parameters, for their names and shapes.
    """

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        self._gradient, self._square = (
            {name: torch.zeros_like(tensor, dtype=_sums(tensor.dtype)) for name, tensor in parameters.items()}
            for _ in range(2)
        )
        device = next((tensor.device for tensor in parameters.values()), None)
        self._whole = Coverage({name: tuple(tensor.shape) for name, tensor in parameters.items()}, device)
        self._single: dict[str, Tensor] = {}
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
        names, before, after = list(self._gradient), trained_part.before, trained_part.after
        ends = ([state[name].to(self._gradient[name].dtype) for name in names] for state in (before, after))
        gradients = torch._foreach_sub(*ends)
        if trained_part.active:
            self._hold_single(trained_part, weight, dict(zip(names, gradients, strict=True)))
        else:
            self._whole.add(trained_part.index_map.tensors, weight)
        torch._foreach_div_(gradients, distance)
        squares = torch._foreach_mul(gradients, gradients)
        for name, gradient, square in zip(names, gradients, squares, strict=True):
            place = trained_part.index_map.tensors[name]
            place.add(gradient, self._gradient[name], weight)
            place.add(square, self._square[name], weight)

    def _hold_single(self, trained_part: TrainedPart, weight: float, gradients: Mapping[str, Tensor]) -> None:
        """Count the entries that were trained as held, and set the gradients of all others to 0."""
        for name, gradient in gradients.items():
            held = torch.ones_like(gradient)
            if name in trained_part.active:
                held = trained_part.active[name].to(gradient)
                gradient *= held
            total = self._single.setdefault(name, torch.zeros_like(self._gradient[name]))
            trained_part.index_map.tensors[name].add(held, total, weight)

    def gradient(self) -> dict[str, Tensor]:
        """Return ``Σ p_k g_k`` by parameter, over the clients that hold an entry."""
        return self._mean(self._gradient)

    def square(self) -> dict[str, Tensor]:
        """Return ``Σ p_k g_k²`` by parameter, over the clients that hold an entry."""
        return self._mean(self._square)

    def coverage(self) -> dict[str, Tensor]:
        """Return ``Σ p_k`` by parameter, over the clients that hold an entry."""
        return {
            name: (held / max(self._weight, 1e-12)).expand_as(self._gradient[name]) for name, held in self._held.items()
        }

    def unheld(self) -> float:
        """Return the share of the entries that no client holds."""
        unheld = [(held == 0).expand_as(self._gradient[name]) for name, held in self._held.items()]
        return sum(int(part.sum()) for part in unheld) / sum(part.numel() for part in unheld)

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
        for name, held in self._held.items():
            core = (held >= self._moved * (1 - 1e-6)).expand_as(self._gradient[name])
            joint += float(self._gradient[name][core].double().square().sum())
            single += float(self._square[name][core].double().sum())
        if alone >= 1 or not single:
            return 0.0
        return max(0.0, (joint / (self._moved * single) - alone) / (1 - alone))

    @property
    def _held(self) -> dict[str, Tensor]:
        """The weight of the clients that hold an entry, broadcastable to the parameter's shape."""
        whole = self._whole.held()
        found = {}
        for name, total in self._gradient.items():
            parts = [part[name].to(total) for part in (whole, self._single) if name in part]
            found[name] = sum(parts, total.new_zeros([1] * total.dim()))
        return found

    def _mean(self, sums: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: total / max(self._weight, 1e-12) for name, total in sums.items()}


def _sums(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype that sums are taken in, because squares of small changes are 0 in half precision."""
    return torch.promote_types(dtype, torch.float32)
