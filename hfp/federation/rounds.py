"""The course of a federated run, round by round: whoever runs the clients, what the server does is this."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from hfp.costs.macs import TRAINING_FACTOR, macs, parameters
from hfp.costs.memory import PeakBytesCounter
from hfp.costs.payload import packed_bytes
from hfp.federation.diagnostics import Observer, ObserverState
from hfp.federation.evaluation import Evaluator, Own
from hfp.federation.exchange import Exchange, Plans
from hfp.federation.experiment import Experiment
from hfp.federation.fleet import Fleet, InProcess, TaskResult
from hfp.federation.home import moved
from hfp.federation.participation import Cohort, CohortState, asked_clients
from hfp.federation.records import LATE, REFUSED, ClientRecord, Cost, RoundRecord, Run
from hfp.federation.replies import problem_of
from hfp.federation.setup import Federation, set_up
from hfp.methods import Collector, ServerState, Update


@dataclass(frozen=True)
class Outcome:
    """One finished round: its figures, and the server's state after it."""

    record: RoundRecord
    state: ServerState


def simulate(experiment: Experiment, on_round: Callable[[Outcome], None] | None = None) -> Run:
    """Run a whole experiment in this process.

    `on_round` is called after every round, e.g. to show progress or to save.

    Raises:
        InputError: the experiment can't be set up, or training diverged.
    """
    federation = set_up(experiment)
    history, state = [], None
    for outcome in rounds(federation):
        history.append(outcome.record)
        state = outcome.state
        if on_round is not None:
            on_round(outcome)
    assert state is not None  # an experiment has at least one round
    weights = moved(state.weights, torch.device("cpu"))
    return Run(experiment, tuple(history), weights, full_cost(federation, experiment.rounds))


def rounds(
    federation: Federation,
    on_client: Callable[[ClientRecord], None] | None = None,
    on_update: Callable[[ServerState, Update], None] | None = None,
    on_state: Callable[[RunState], None] | None = None,
) -> Iterator[Outcome]:
    """Yield each round's outcome as it ends.

    `on_client` is called after every client of a round, `on_update` with every update that is collected, `on_state`
    after every round.
    """
    course = Course(federation, on_client=on_client, on_update=on_update)
    for _ in range(federation.experiment.rounds):
        outcome = course.advance()
        if on_state is not None:
            on_state(course.run_state)
        yield outcome


@dataclass(frozen=True)
class RunState:
    """All that the coming rounds of a run depend on, beside its experiment."""

    state: ServerState
    plans: Plans
    cohort_state: CohortState
    observer_state: ObserverState | None


class Course:
    """A run under way, one round at a time, on any fleet; it goes on from a `run_state`, if there is one."""

    def __init__(
        self,
        federation: Federation,
        fleet: Fleet | None = None,
        run_state: RunState | None = None,
        on_client: Callable[[ClientRecord], None] | None = None,
        on_update: Callable[[ServerState, Update], None] | None = None,
    ) -> None:
        experiment, clients = federation.experiment, federation.context.clients
        start = federation.method.start
        self._federation, self._fleet = federation, fleet or InProcess(federation)
        run_state = run_state and moved(run_state, self._fleet.home)
        initial = moved(federation.initial, self._fleet.home)
        self.state = run_state.state if run_state else start(federation.context, initial)
        self._exchange = Exchange(federation, run_state.plans if run_state else None)
        self._cohort = Cohort(experiment, clients, run_state.cohort_state if run_state else None)
        observer_state = run_state.observer_state if run_state else None
        self._observer = Observer(federation, observer_state) if experiment.diagnostics else None
        self._evaluator = Evaluator(federation, self._fleet)
        self._on_client, self._on_update = on_client, on_update

    @property
    def run_state(self) -> RunState:
        """Where the run stands between two rounds."""
        observer_state = self._observer.observer_state if self._observer else None
        return RunState(self.state, self._exchange.plans, self._cohort.cohort_state, observer_state)

    def advance(self) -> Outcome:
        """Run the next round."""
        begun, experiment = time.perf_counter(), self._federation.experiment
        method, observer, state = self._federation.method, self._observer, self.state
        phase = method.phase(state)
        collector = method.collect(self._federation.context, state)
        watch = observer.watch(state, collector) if observer else None
        measured, own_too = experiment.measures(state.round), experiment.measures_own(state.round)
        own = Own(self._federation, self._evaluator, state, watch or collector) if own_too else None
        records, heard = self._ask(own or watch or collector)
        after = collector.finish() if heard else dataclasses.replace(state, round=state.round + 1)
        self.state = self._evaluator.refresh(after) if measured else after
        accuracy, loss = self._evaluator.score(self.state) if measured else (None, None)
        record = RoundRecord(
            round=self.state.round,
            phase=phase,
            accuracy=accuracy,
            loss=loss,
            clients=tuple(records),
            statistics=self._evaluator.traffic,
            seconds=time.perf_counter() - begun,
            deadline=experiment.deadline,
            personal=own.report() if own else None,
            diagnostics=observer.report(watch) if observer and watch and heard else None,
        )
        return Outcome(record, self.state)

    def _ask(self, collector: Collector) -> tuple[list[ClientRecord], int]:
        """Have this round's clients train and collect their replies: the records, and how many were collected."""
        method, context, state = self._federation.method, self._federation.context, self.state
        records, heard = [], 0
        for result in self._task_results():
            update, record = self._exchange.update(state.round, result), self._exchange.record(result)
            problem = problem_of(method, context, state, update) if update else ""
            if update is None:
                pass
            elif problem:
                record = dataclasses.replace(record, status=REFUSED, problem=problem)
            elif method.waits_for_all(state) or self._cohort.admit(state.round, update):
                self._collect(collector, update)
                heard += 1
            else:
                record = dataclasses.replace(record, status=LATE)
            records.append(record)
            if self._on_client is not None:
                self._on_client(record)
        for update in self._cohort.arrivals(state.round):
            rebased = method.rebase(context, state, update)
            if rebased is not None:
                self._collect(collector, rebased)
                heard += 1
        return records, heard

    def _collect(self, collector: Collector, update: Update) -> None:
        collector.add(update)
        if self._on_update is not None:
            self._on_update(self.state, update)

    def _task_results(self) -> Iterator[TaskResult]:
        """What comes of every client that takes part, in their order; those that drop out are not even started."""
        method, context, state = self._federation.method, self._federation.context, self.state
        present = self._fleet.reachable(state.round, self._cohort.asked(state.round))
        chosen = method.select(context, state, present) if present else ()
        chosen = [self._federation.client_in(state.round, client) for client in chosen]
        lost = {client.index for client in chosen if self._cohort.drops_out(state.round, client)}
        sent = [client for client in chosen if client.index not in lost]
        results = self._fleet.train(state.round, sent, lambda client: self._exchange.task(state, client))
        for client in chosen:
            yield self._exchange.lose(state, client) if client.index in lost else next(results)


def full_cost(federation: Federation, rounds: int) -> Cost:
    """What the first `rounds` rounds cost when the clients that are asked train the full model, as in FedAvg."""
    message = packed_bytes(federation.initial)
    experiment, clients = federation.experiment, federation.context.clients
    forward = macs(federation.model, federation.context.example)
    asked = asked_clients(experiment.participation, len(clients))
    epochs = [experiment.epochs_in(round) for round in range(rounds)]
    image = TRAINING_FACTOR * forward
    slowest = [
        max(client.device.seconds(message, image * client.samples * each, message).total for client in clients)
        for each in epochs
    ]
    return Cost(
        bytes_down=message * asked * rounds,
        bytes_up=message * asked * rounds,
        training_macs=image * sum(client.samples for client in clients) * sum(epochs) * asked // len(clients),
        forward_macs=forward,
        parameters=parameters(federation.model),
        peak_bytes=PeakBytesCounter(federation.context.example)(federation.model, experiment.batch_size),
        seconds=sum(slowest),
    )
