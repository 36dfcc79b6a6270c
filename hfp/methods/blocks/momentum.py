"""Momentum at the server: a round goes on in the direction of the rounds before it (Hsu et al., arXiv 1909.06335)."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from hfp.methods.interface.values import State


def server_momentum_step(
    before: State, mean: State, velocity: State, momentum: float, parameters: Iterable[str]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Take the step ``v ← β v + (w̄ - w)``, ``w ← w + v``.

    Args:
        before: ``w``, the global weights before the round.
        mean: ``w̄``, the mean of the clients' weights.
        velocity: ``v`` by name; a name that is missing has a velocity of 0.
        momentum: ``β``.
        parameters: the names that the step is taken for; other entries are taken from `mean`.

    Returns:
        The new weights, and the new velocity, which is empty without momentum.
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
