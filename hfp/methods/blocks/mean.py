"""The collector of methods that average submodels and remember nothing else."""

from __future__ import annotations

import dataclasses

from hfp.methods.interface.values import ServerState, Update
from hfp.reconstruct import Aggregator


class MeanCollector:
    """Averages replies under one of `hfp.reconstruct.Aggregator`'s rules.

    Args:
        state: the state before the round.
        rule: the name of the rule.
        uniform: give all clients the same weight; by default a client's weight is its number of samples.
    """

    def __init__(self, state: ServerState, rule: str, *, uniform: bool = False) -> None:
        self._state, self._uniform = state, uniform
        self._aggregator = Aggregator(state.weights, rule=rule)

    def add(self, update: Update) -> None:
        """Fold one client's update in."""
        weight = 1 if self._uniform else update.client.samples
        self._aggregator.add(update.reply.tensors, update.task.index_map, weight=weight)

    def finish(self) -> ServerState:
        """Return the state that the next round starts from."""
        return dataclasses.replace(self._state, round=self._state.round + 1, weights=self._aggregator.finish())
