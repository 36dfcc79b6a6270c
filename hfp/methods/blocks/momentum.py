"""Momentum at the server (Hsu et al. 2019, arXiv 1909.06335): a round goes on in the direction of those before it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from hfp.methods.interface.values import State
from hfp.settings import setting


def server_momentum_setting(default: float) -> Any:
    """The option of a method that steps with momentum at the server."""
    return setting(
        default,
        "This share of a round's change of the global parameters moves them again in the next round.",
        within="[0, 1)",
    )


def server_momentum_step(
    before: State, mean: State, velocity: State, momentum: float, parameters: Iterable[str]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """``v ← β v + (w̄ - w)`` and ``w ← w + v`` for the `parameters`; what else the mean has stays as it is.

    before: ``w``. mean: ``w̄``, the clients'. velocity: ``v``, without the names that have none yet.

    Returns:
        The new weights, and the new velocity, empty without momentum.
    """
    if momentum == 0:
        return dict(mean), {}
    after, moved = dict(mean), {}
    for name in parameters:
        moved[name] = mean[name] - before[name]
        if name in velocity:
            moved[name] += momentum * velocity[name]
        after[name] = before[name] + moved[name]
    return after, moved
