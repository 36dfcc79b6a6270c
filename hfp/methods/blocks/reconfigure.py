"""PruneFL's reconfiguration: which single weights are worth their time (arXiv 1909.12326, algorithm 2)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

Tensors = Mapping[str, Tensor]


def reconfigure(
    weights: Tensors,
    squares: Tensors,
    active: Tensors,
    times: Mapping[str, float],
    *,
    overhead: float,
    share: float,
    most: int,
) -> dict[str, Tensor]:
    """New masks by name: the weights that are active from now on.

    In every layer the active weights that are not among the `share` smallest stay (protected). All other weights, small
    or pruned, are candidates: in the order of ``g²/t`` they are added while that exceeds
    ``Γ = Σ g² / (overhead + Σ t)`` over what is active by then, which maximises ``Γ``, and while there are no more than
    `most`.

    Args:
        weights: the prunable tensors, by name.
        squares: their mean squared gradients ``g²``.
        active: their present masks.
        times: ``t``, the time that one weight of the tensor takes.
        overhead: the time that doesn't depend on the weights, above 0.
        share: of a layer's active weights, the part that is up for removal.
        most: weights that may be active; more only where more are protected.
    """
    names = list(weights)
    kept = {name: _protected(weights[name], active[name], share) for name in names}
    gain = torch.cat([squares[name][~kept[name]] for name in names]).double()
    time = torch.cat([torch.full((int((~kept[name]).sum()),), float(times[name])) for name in names]).double()
    protected = sum(int(mask.sum()) for mask in kept.values())
    gained = sum(float(squares[name][kept[name]].double().sum()) for name in names)
    spent = overhead + sum(times[name] * int(kept[name].sum()) for name in names)
    order = (gain / time).argsort(descending=True, stable=True)
    added = torch.zeros(len(order), dtype=torch.bool)
    added[order[: _worthwhile(gain[order], time[order], gained, spent, most - protected)]] = True
    parts = added.split([int((~kept[name]).sum()) for name in names])
    return {name: kept[name].masked_scatter(~kept[name], part) for name, part in zip(names, parts, strict=True)}


def _protected(weight: Tensor, active: Tensor, share: float) -> Tensor:
    """The active weights without the `share` of them that is smallest."""
    count = int(active.sum())
    size = weight.abs().masked_fill(~active, torch.inf).reshape(-1)
    smallest = size.argsort(stable=True)[: int(share * count)]
    return active.reshape(-1).index_fill(0, smallest, False).reshape(active.shape)


def _worthwhile(gain: Tensor, time: Tensor, gained: float, spent: float, room: int) -> int:
    """How many candidates, best first, to add."""
    before = (gained + gain.cumsum(0) - gain) / (spent + time.cumsum(0) - time)
    worse = (gain / time <= before).nonzero()
    return min(int(worse[0]) if len(worse) else len(gain), max(room, 0))
