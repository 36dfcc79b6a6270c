"""FedMP: the server prunes the global model by l1 for every worker, and puts the trained models back (ICDE 2022)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from hfp.methods.blocks.eucb import Bandit
from hfp.methods.blocks.filters import filter_scores
from hfp.methods.blocks.mean import MeanCollector
from hfp.methods.blocks.selection import Scores, check_counts, keep_best
from hfp.methods.interface.base import Method
from hfp.methods.interface.counts import kept_counts
from hfp.methods.interface.registry import register
from hfp.methods.interface.values import Client, MethodContext, ServerState, State, Update
from hfp.reconstruct import Plan
from hfp.seeds import generator
from hfp.settings import setting

NEAREST = 0.01  # a worker closer than this to the mean time counts as this far away, so that rewards stay finite


@dataclass(frozen=True)
class Worker:
    """What the server knows of a worker: its bandit, and the loss that it reported last."""

    bandit: Bandit
    loss: float


@dataclass(frozen=True)
class FedMPState:
    """What the server remembers between rounds: the channels' norms, and the workers that replied so far."""

    scores: Scores
    workers: Mapping[int, Worker] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """What a round says of one worker: the ratio that was drawn, its training loss and its simulated seconds."""

    client: Client
    ratio: float
    loss: float
    seconds: float


@register
@dataclass(frozen=True)
class FedMP(Method):
    """FedMP keeps the channels of largest l1 norm, at one ratio in every coupled group, and averages recovered models.

    A recovered model (R2SP) is a worker's trained submodel plus the residual ``w_t - w_t[S_k]`` that the server kept.
    So an entry that a worker did not hold enters the mean with its global value. All workers have the same weight.

    With `bandit` a worker's ratio is drawn by E-UCB (`hfp.methods.blocks.eucb`). Its reward is the decrease of the
    worker's loss since its last report, divided by the distance of its time from the round's mean time. The distance
    is relative to that mean, and at least a hundredth.
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

    @property
    def uses_ratios(self) -> bool:
        """The bandit draws ratios of its own."""
        return not self.bandit

    @property
    def reads_losses(self) -> bool:
        """The bandit's reward is the decrease of the clients' losses."""
        return self.bandit

    def check(self, context: MethodContext) -> None:
        """Refuse ratios that leave a client without channels in a coupled group."""
        if self.bandit:
            kept_counts(context.groups, self.most)
        else:
            check_counts(context)

    def start(self, context: MethodContext, weights: State) -> ServerState:
        """Start with the norms of the initial weights' channels, and no worker known."""
        return ServerState(0, weights, FedMPState(filter_scores(context.groups, context.model, weights)))

    def plan(self, context: MethodContext, state: ServerState, client: Client) -> Plan:
        """Plan the channels of largest norm, at the worker's own ratio or one that its bandit draws."""
        ratio = self.drawn(context, state, client) if self.bandit else client.ratio
        return keep_best(context.groups, ratio, state.method_state.scores)

    def drawn(self, context: MethodContext, state: ServerState, client: Client) -> float:
        """Draw a worker's ratio for a round, which is the same whenever it is asked for."""
        return self._bandit(state, client).draw(generator(context.seed, "bandit", state.round, client.index))

    def earned(self, context: MethodContext, state: ServerState, update: Update) -> float:
        """Return the ratio that an update's reward belongs to.

        It is the one that was drawn: the plan's is rounded to whole channels, and may lie in another interval of the
        bandit's or in none. A late update has a plan of another draw, and its reward belongs to the plan's ratio.
        """
        plan = update.task.plan
        if not self.bandit:
            return plan.ratio
        drawn = self.drawn(context, state, update.client)
        kept = {name: len(plan.kept[name]) for name in plan.sizes}
        return drawn if kept_counts(context.groups, drawn) == kept else min(plan.ratio, math.nextafter(self.most, 0))

    def collect(self, context: MethodContext, state: ServerState) -> WorkerCollector:
        """Average the recovered models, all with the same weight."""
        return WorkerCollector(self, context, state)

    def learned(self, state: ServerState, reports: Sequence[Report]) -> dict[int, Worker]:
        """Return the workers after a round with these reports; without `bandit` there is nothing to learn."""
        if not self.bandit:
            return {}
        workers = dict(state.method_state.workers)
        mean = sum(report.seconds for report in reports) / len(reports)
        for report in reports:
            index, bandit = report.client.index, self._bandit(state, report.client)
            if index in workers:
                distance = max(abs(report.seconds - mean) / mean, NEAREST) if mean > 0 else NEAREST
                bandit = bandit.learn(report.ratio, (workers[index].loss - report.loss) / distance)
            workers[index] = Worker(bandit, report.loss)
        return workers

    def _bandit(self, state: ServerState, client: Client) -> Bandit:
        worker = state.method_state.workers.get(client.index)
        return worker.bandit if worker else Bandit(((0.0, self.most),), self.discount, self.finest)


class WorkerCollector:
    """Averages recovered models, takes the channels' norms in the mean, and notes each worker's report."""

    def __init__(self, method: FedMP, context: MethodContext, state: ServerState) -> None:
        self._method, self._context, self._state = method, context, state
        self._mean = MeanCollector(state, rule="fill", uniform=True)
        self._reports: dict[int, Report] = {}

    def add(self, update: Update) -> None:
        """Fold one client's update in."""
        self._mean.add(update)
        self._reports[update.client.index] = Report(
            client=update.client,
            ratio=self._method.earned(self._context, self._state, update),
            loss=update.reply.loss,
            seconds=update.seconds.total,
        )

    def finish(self) -> ServerState:
        """Return the state that the next round starts from."""
        state = self._mean.finish()
        scores = filter_scores(self._context.groups, self._context.model, state.weights)
        workers = self._method.learned(self._state, list(self._reports.values()))
        return dataclasses.replace(state, method_state=FedMPState(scores, workers))
