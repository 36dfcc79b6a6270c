"""FedAvg: every client trains the full model; the server takes the mean weighted by samples."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

from hfp.methods.base import Client, Method, ServerState, Setting, Update
from hfp.methods.registry import register
from hfp.reconstruct import Aggregator, IndexMap


class MeanCollector:
    """Averages updates under one of `hfp.reconstruct.Aggregator`'s rules; clients count by their samples."""

    def __init__(self, state: ServerState, rule: str) -> None:
        self._state = state
        self._aggregator = Aggregator(state.weights, rule=rule)

    def add(self, update: Update) -> None:
        """Fold one client's update in."""
        self._aggregator.add(update.state, update.index_map, weight=update.client.samples)

    def finish(self) -> ServerState:
        """The state of the next round."""
        return dataclasses.replace(self._state, round=self._state.round + 1, weights=self._aggregator.result())


@register
@dataclass(frozen=True)
class FedAvg(Method):
    """``w_{t+1} = Σ p_k w_k`` over full models, ``p_k`` the client's share of the samples."""

    name: ClassVar[str] = "fedavg"
    source: ClassVar[str] = "McMahan et al. 2017, arXiv 1602.05629"
    summary: ClassVar[str] = "every client trains the full model; mean weighted by samples"

    def plan(self, setting: Setting, state: ServerState, client: Client) -> IndexMap:
        """The full model, whatever the client's ratio."""
        return setting.groups.index_map(setting.groups.plan({}))

    def collect(self, setting: Setting, state: ServerState) -> MeanCollector:
        """A plain weighted mean."""
        return MeanCollector(state, rule="fill")
