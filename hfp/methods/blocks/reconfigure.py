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
    """Choose which weights are active from now on.

    In every layer the `share` of the active weights that is smallest is reconsidered; the other active weights stay.
    The reconsidered weights and the pruned ones are candidates. They are added in the order of ``g²/t``, the largest
    first, while ``g²/t`` exceeds ``Γ = Σ g² / (overhead + Σ t)`` over the weights that are active by then. This
    maximises ``Γ``.

    Args:
        weights: the prunable tensors, by name.
        squares: their mean squared gradients ``g²``.
        active: their present masks.
        times: ``t``, the time that one weight of a tensor takes.
        overhead: the time that doesn't depend on the weights, above 0.
        share: the share of a layer's active weights that is reconsidered.
        most: how many weights may be active in all; there are more only where more must stay.

    Returns:
        The new masks, by name.
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
    """Return a mask of the active weights without the `share` of them that is smallest."""
    count = int(active.sum())
    size = weight.abs().masked_fill(~active, torch.inf).reshape(-1)
    smallest = size.argsort(stable=True)[: int(share * count)]
    return active.reshape(-1).index_fill(0, smallest, False).reshape(active.shape)


def _worthwhile(gain: Tensor, time: Tensor, gained: float, spent: float, room: int) -> int:
    """Count the candidates, best first, that are worth adding."""
    before = (gained + gain.cumsum(0) - gain) / (spent + time.cumsum(0) - time)
    worse = (gain / time <= before).nonzero()
    return min(int(worse[0]) if len(worse) else len(gain), max(room, 0))
