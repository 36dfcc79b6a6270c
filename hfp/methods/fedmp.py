"""FedMP: the server prunes the global model for every worker by l1 and recovers with what it left out (ICDE 2022)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from hfp.methods.blocks.eucb import Bandit
from hfp.methods.blocks.filters import filter_scores
from hfp.methods.blocks.mean import MeanCollector
from hfp.methods.blocks.selection import Scores, check_counts, keep_best, kept_counts
from hfp.methods.interface.base import Method
from hfp.methods.interface.registry import register
from hfp.methods.interface.values import Client, MethodContext, ServerState, State, Update
from hfp.reconstruct import Plan
from hfp.seeds import generator
from hfp.settings import setting

NEAREST = 0.01  # a worker closer than this to the mean time counts as this far away: rewards stay finite


@dataclass(frozen=True)
class Worker:
    """What the server knows of a worker: its bandit, and the loss that it reported last."""

    bandit: Bandit
    loss: float


@dataclass(frozen=True)
class FedMPState:
    """The channels' norms, and the workers met so far."""

    scores: Scores
    workers: Mapping[int, Worker] = field(default_factory=dict)


@register
@dataclass(frozen=True)
class FedMP(Method):
    """The channels of largest l1 norm, the same ratio in every coupled group; the plain mean of recovered models.

    Recovering (R2SP) adds to a worker's trained submodel the residual ``w_t - w_t[S_k]`` that the server kept: entries
    that it did not hold enter the mean with their global value.

    With `bandit` a worker's ratio is drawn by E-UCB (`hfp.methods.blocks.eucb`). A pull's reward is the decrease of the
    worker's loss since its last report, over the distance of its time from the round's mean time (relative to that
    mean, at least a hundredth).
    """

    name: ClassVar[str] = "fedmp"
    source: ClassVar[str] = "Jiang et al., ICDE 2022"
    summary: ClassVar[str] = "each client trains the channels of largest l1 norm; recovered models count all the same"

    bandit: bool = setting(False, "A worker's ratio is drawn by the E-UCB bandit in place of its own.")
    most: float = setting(0.8, "The bandit draws ratios below this one.", within="(0, 1)")
    discount: float = setting(
        0.95, "The bandit multiplies the weight of earlier rewards by this factor per round.", within="(0, 1)"
    )
    finest: float = setting(0.05, "The bandit splits intervals of ratios down to this width.", within="(0, 1)")

    def check(self, context: MethodContext) -> None:
        """Every client must keep a channel in every coupled group."""
        if self.bandit:
            kept_counts(context.groups, self.most)
        else:
            check_counts(context)

    def start(self, context: MethodContext, weights: State) -> ServerState:
        """The state before the first round: the channels' norms, and no worker known."""
        return ServerState(0, weights, FedMPState(filter_scores(context.groups, context.model, weights)))

    def plan(self, context: MethodContext, state: ServerState, client: Client) -> Plan:
        """The largest channels."""
        ratio = client.ratio
        if self.bandit:
            ratio = self._bandit(state, client).draw(generator(context.seed, "bandit", state.round, client.index))
        return keep_best(context.groups, ratio, state.method_state.scores)

    def collect(self, context: MethodContext, state: ServerState) -> WorkerCollector:
        """Every worker counts the same."""
        return WorkerCollector(self, context, state)

    def learned(
        self, state: ServerState, updates: Mapping[int, tuple[Client, float, float, float]]
    ) -> dict[int, Worker]:
        """The workers after a round of (client, ratio, loss, seconds) by client."""
        if not self.bandit:
            return {}
        workers = dict(state.method_state.workers)
        mean = sum(seconds for *_, seconds in updates.values()) / len(updates)
        for index, (client, ratio, loss, seconds) in updates.items():
            bandit = self._bandit(state, client)
            if index in workers:
                distance = max(abs(seconds - mean) / mean, NEAREST) if mean > 0 else NEAREST
                bandit = bandit.learn(ratio, (workers[index].loss - loss) / distance)
            workers[index] = Worker(bandit, loss)
        return workers

    def _bandit(self, state: ServerState, client: Client) -> Bandit:
        worker = state.method_state.workers.get(client.index)
        return worker.bandit if worker else Bandit(((0.0, self.most),), self.discount, self.finest)


class WorkerCollector:
    """The plain mean of recovered models, the channels' norms in it, and what the round says of each worker."""

    def __init__(self, method: FedMP, context: MethodContext, state: ServerState) -> None:
        self._method, self._context, self._state = method, context, state
        self._mean = MeanCollector(state, rule="fill", uniform=True)
        self._seen: dict[int, tuple[Client, float, float, float]] = {}

    def add(self, update: Update) -> None:
        """Fold one client's update in."""
        self._mean.add(update)
        seen = (update.client, update.task.plan.ratio, update.reply.loss, update.seconds.total)
        self._seen[update.client.index] = seen

    def finish(self) -> ServerState:
        """The state of the next round."""
        state = self._mean.finish()
        scores = filter_scores(self._context.groups, self._context.model, state.weights)
        return dataclasses.replace(
            state, method_state=FedMPState(scores, self._method.learned(self._state, self._seen))
        )
