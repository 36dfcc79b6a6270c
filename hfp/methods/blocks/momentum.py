"""Momentum at the server (Hsu et al. 2019, arXiv 1909.06335): a round goes on in the direction of those before it."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from hfp.errors import InputError
from hfp.methods.interface.values import State


def check_momentum(momentum: float) -> None:
    """Refuse a share that isn't one.

    Raises:
        InputError: it isn't in [0, 1).
    """
    if not 0 <= momentum < 1:
        raise InputError(f"server_momentum must be in [0, 1); found {momentum}")


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
