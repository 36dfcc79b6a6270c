"""FedMP: the server prunes the global model for every worker by l1 and recovers with what it left out (ICDE 2022)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

from hfp.methods.base import Client, Method, ServerState, Setting, State, Update
from hfp.methods.filters import filter_scores
from hfp.methods.mean import MeanCollector
from hfp.methods.registry import register
from hfp.methods.selection import check_counts, keep_best
from hfp.reconstruct import Plan


@register
@dataclass(frozen=True)
class FedMP(Method):
    """The channels of largest l1 norm, the same ratio in every coupled group; the plain mean of recovered models.

    Recovering (R2SP) adds to a worker's trained submodel the residual ``w_t - w_t[S_k]`` that the server kept: entries
    that it did not hold enter the mean with their global value.
    """

    name: ClassVar[str] = "fedmp"
    source: ClassVar[str] = "Jiang et al., ICDE 2022"
    summary: ClassVar[str] = "each client trains the channels of largest l1 norm; recovered models count all the same"

    def check(self, setting: Setting) -> None:
        """Every client must keep a channel in every coupled group."""
        check_counts(setting)

    def start(self, setting: Setting, weights: State) -> ServerState:
        """The state before the first round; its memory is the channels' norms."""
        return ServerState(0, weights, filter_scores(setting.groups, weights))

    def plan(self, setting: Setting, state: ServerState, client: Client) -> Plan:
        """The largest channels."""
        return keep_best(setting.groups, client.ratio, state.memory)

    def collect(self, setting: Setting, state: ServerState) -> NormCollector:
        """Every worker counts the same."""
        return NormCollector(setting, state)


class NormCollector:
    """The plain mean of recovered models, and the channels' norms in it."""

    def __init__(self, setting: Setting, state: ServerState) -> None:
        self._setting, self._mean = setting, MeanCollector(state, rule="fill", uniform=True)

    def add(self, update: Update) -> None:
        """Fold one client's update in."""
        self._mean.add(update)

    def finish(self) -> ServerState:
        """The state of the next round."""
        state = self._mean.finish()
        return dataclasses.replace(state, memory=filter_scores(self._setting.groups, state.weights))
