"""The course of a federated run, round by round, as the server sees it, whoever runs the clients."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from hfp.costs.machine import device_peak_bytes, process_peak_bytes
from hfp.costs.macs import TRAINING_FACTOR
from hfp.costs.payload import packed_bytes
from hfp.errors import InputError
from hfp.federation.diagnostics import DiagnosticsObserver
from hfp.federation.ending import why_ended
from hfp.federation.evaluation import Evaluator, PersonalAccuracy
from hfp.federation.exchange import Exchange, Plans
from hfp.federation.experiment import asked_clients
from hfp.federation.fleet import Fleet, InProcess, TaskResult
from hfp.federation.home import moved
from hfp.federation.observer import Observer
from hfp.federation.participation import Cohort, CohortState
from hfp.federation.records import FAILED, LATE, REFUSED, ClientRecord, Cost, RoundRecord, Run, check_figures
from hfp.federation.replies import ReplyCheck
from hfp.federation.safeguards import Safeguards
from hfp.federation.setup import Federation
from hfp.methods import Client, Collector, ServerState, Update


@dataclass(frozen=True)
class Outcome:
    """One finished round: its figures, and the server's state after it."""

    record: RoundRecord
    state: ServerState


@dataclass(frozen=True)
class RunState:
    """All that the coming rounds of a run depend on beside its experiment, and the records of the rounds before."""

    state: ServerState
    plans: Plans
    cohort_state: CohortState
    observer_states: Mapping[str, Any] = field(default_factory=dict)
    history: tuple[RoundRecord, ...] = ()


def rounds(federation: Federation) -> Iterator[Outcome]:
    """Yield each round's outcome as it ends."""
    course = Course(federation)
    while not course.ended:
        yield course.advance()


class Course:
    """A run on any fleet, which tells its observers what happens and can be resumed from a `run_state`."""

    def __init__(
        self,
        federation: Federation,
        fleet: Fleet | None = None,
        run_state: RunState | None = None,
        observers: Sequence[Observer] = (),
    ) -> None:
        experiment, clients = federation.experiment, federation.context.clients
        start = federation.method.start
        self.history = run_state.history if run_state else ()
        self._unsettled: list[Observer] = []
        self._federation, self._fleet = federation, fleet or InProcess(federation)
        run_state = run_state and moved(run_state, self._fleet.home)
        initial = moved(federation.initial, self._fleet.home)
        self.state = run_state.state if run_state else start(federation.context, initial)
        self._exchange = Exchange(federation, run_state.plans if run_state else None)
        self._cohort = Cohort(experiment, clients, run_state.cohort_state if run_state else None)
        self._safeguards = Safeguards(federation, self.history)
        self._check = ReplyCheck(federation)
        self._check.check_start()
        self._evaluator = Evaluator(federation, self._fleet, self._safeguards)
        self._observers = _named([*self._measuring(), *observers])
        for name, observer_state in (run_state.observer_states if run_state else {}).items():
            if name in self._observers:
                self._observers[name].restore(observer_state)

    def _measuring(self) -> Iterator[Observer]:
        """Make the observers that the experiment asks for."""
        if self._safeguards.active:
            yield self._safeguards
        if self._federation.experiment.personal:
            yield PersonalAccuracy(self._federation, self._evaluator)
        if self._federation.experiment.diagnostics:
            yield DiagnosticsObserver(self._federation)

    @property
    def run_state(self) -> RunState:
        """Where the run stands between two rounds."""
        states = {name: observer.observer_state for name, observer in self._observers.items()}
        kept = {name: state for name, state in states.items() if state is not None}
        return RunState(self.state, self._exchange.plans, self._cohort.cohort_state, kept, self.history)

    @property
    def ended(self) -> str:
        """Why the run is over; empty where rounds are left."""
        experiment = self._federation.experiment
        return why_ended([record.accuracy for record in self.history], experiment.rounds, experiment.patience)

    @property
    def result(self) -> Run:
        """The run as far as it has come."""
        cost = full_cost(self._federation, len(self.history))
        weights = moved(self.state.weights, torch.device("cpu"))
        return Run(self._federation.experiment, self.history, weights, cost)

    def run(self) -> Run:
        """Run all rounds that are left, and tell the observers when the run begins and ends.

        Raises:
            InputError: all clients of a round failed, or an observer can't go on.
        """
        for observer in self._observers.values():
            observer.run_began(self._federation, self.history)
        finished = False
        try:
            while not self.ended:
                self.advance()
            finished = True
        finally:
            self._settle()  # an interruption may have come between the end of a round and this
            run = self.result
            for observer in self._observers.values():
                observer.run_ended(run, finished)
        return run

    def advance(self) -> Outcome:
        """Run the next round.

        Raises:
            InputError: all clients failed, or there are fewer replies than the experiment asks for. A course that goes
                on from the last `run_state` does the round again.
        """
        begun, observers, before = time.perf_counter(), self._observers.values(), self.state
        asked = self._cohort.asked(before.round)
        for observer in observers:
            observer.round_began(before)
        phase = self._federation.method.phase(before)
        collector = self._federation.method.collect(self._federation.context, before)
        records, heard = self._ask(collector, asked)
        _check_some_trained(before.round, records, len(self._federation.context.clients))
        _check_enough(before.round, heard, records, self._federation.experiment.least_replies)
        after, dropped = dataclasses.replace(before, round=before.round + 1), ""
        if heard:
            after, dropped = self._check.next_state(before, collector)
        if dropped:
            records = [record.dropped_round(dropped) for record in records]
        outcome = self._measured(self._scored(after, phase, records, asked, begun))
        history, unsettled = (*self.history, outcome.record), list(observers)
        self._unsettled, self.state, self.history = unsettled, outcome.state, history
        for observer in observers:
            observer.round_ended(outcome)
        self._settle()
        return outcome

    def _settle(self) -> None:
        """Tell the observers where the run stands, once per round."""
        run_state = self.run_state
        while self._unsettled:
            self._unsettled.pop(0).state_settled(run_state)

    def _scored(
        self, after: ServerState, phase: str, records: list[ClientRecord], asked: Sequence[Client], begun: float
    ) -> Outcome:
        """Return the round with the global model tested, where that is due."""
        experiment = self._federation.experiment
        participants = [client for client in asked if not self._cohort.drops_out(self.state.round, client)]
        score = None
        if experiment.measures(self.state.round):
            after = self._evaluator.refresh(after, participants)
            score = self._evaluator.score(after)
            records = [self._evaluator.with_refusal(record) for record in records]
        record = RoundRecord(
            round=after.round,
            phase=phase,
            accuracy=None if score is None else score.accuracy,
            loss=None if score is None else score.loss,
            f1=None if score is None else score.f1,
            clients=tuple(records),
            statistics=self._evaluator.traffic(participants),
            seconds=time.perf_counter() - begun,
            deadline=experiment.deadline,
            process_peak_bytes=process_peak_bytes(),
            device_peak_bytes=device_peak_bytes(self._fleet.home),
        )
        return Outcome(record, after)

    def _measured(self, outcome: Outcome) -> Outcome:
        """Return the round with what the observers measured."""
        figures: dict[str, Any] = {}
        for name, observer in self._observers.items():
            found = observer.figures(outcome)
            twice = found.keys() & figures.keys()
            if twice:
                raise InputError(f"{name} gives a figure {min(twice)!r}, which another observer of the run gives too")
            figures.update(found)
        record = dataclasses.replace(outcome.record, figures=figures)
        check_figures(record)
        return Outcome(record, outcome.state)

    def _ask(self, collector: Collector, asked: Sequence[Client]) -> tuple[list[ClientRecord], int]:
        """Have this round's clients train and collect their replies: the records, and how many were collected."""
        method, context, state = self._federation.method, self._federation.context, self.state
        records: list[ClientRecord] = []
        came: list[Update] = []
        heard = 0
        for result in self._task_results(asked):
            update, record = self._exchange.update(state.round, result), self._exchange.record(result)
            problem = self._check.problem_of(state, update) if update else ""
            if update is None:
                pass
            elif problem:
                refused = dataclasses.replace(result, reply=None, status=REFUSED, problem=problem)
                record = self._exchange.record(refused)  # without the figures, which are the client's own words
            elif method.waits_for_all(state) or self._cohort.admit(state.round, update):
                self._take(update, collector, came)
                heard += 1
            else:
                record = dataclasses.replace(record, status=LATE)
            records.append(record)
            for observer in self._observers.values():
                observer.client_done(record)
        for update in self._cohort.arrivals(state.round):
            rebased = method.rebase(context, state, update)
            if rebased is not None:
                self._take(rebased, collector, came)
                heard += 1
        for update in self._safeguards.released(state, came):
            collector.add(update)
        return records, heard

    def _take(self, update: Update, collector: Collector, came: list[Update]) -> None:
        """Hand an update to the collector, or keep it for the safeguards, which see all of a round's together."""
        if self._safeguards.active:
            came.append(update)
        else:
            collector.add(update)
        for observer in self._observers.values():
            observer.update_came(self.state, update)

    def _task_results(self, asked: Sequence[Client]) -> Iterator[TaskResult]:
        """Yield what comes of every client that takes part, in their order.

        Those that drop out, or whose device is too small for the task, are not started.
        """
        method, context, state = self._federation.method, self._federation.context, self.state
        present = self._fleet.reachable(state.round, asked)
        chosen = method.select(context, state, present) if present else ()
        chosen = [self._federation.client_in(state.round, client) for client in chosen]
        lost = {client.index for client in chosen if self._cohort.drops_out(state.round, client)}
        problems = {client.index: self._exchange.misfit(state, client) for client in chosen}
        sent = [client for client in chosen if client.index not in lost and not problems[client.index]]
        results = self._fleet.train(state.round, sent, lambda client: self._exchange.task(state, client))
        for client in chosen:
            if client.index in lost or problems[client.index]:
                yield self._exchange.lose(state, client, problems[client.index])
            else:
                yield next(results)


def _named(observers: Sequence[Observer]) -> dict[str, Observer]:
    """Name observers, by which their states are kept; the second one of a class has a number in its name."""
    seen: Counter[str] = Counter()
    named = {}
    for observer in observers:
        kind = type(observer).__name__
        seen[kind] += 1
        named[kind if seen[kind] == 1 else f"{kind} {seen[kind]}"] = observer
    return named


def _check_some_trained(round: int, records: Sequence[ClientRecord], clients: int) -> None:
    """Refuse to go on where nobody can train: one failed client of several does not end the run."""
    if len(records) >= min(2, clients) and all(record.status == FAILED for record in records):
        raise InputError(f"{records[0].problem}; all {len(records)} clients of round {round + 1} failed")


def _check_enough(round: int, heard: int, records: Sequence[ClientRecord], least: int) -> None:
    """Refuse to go on from a round with too few replies, which is done again when the run is resumed."""
    if heard < least:
        counts = Counter(record.status for record in records)
        said = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
        raise InputError(
            f"round {round + 1} had {heard} of the {least} usable replies that it needs (least_replies): {said}; the "
            "state before the round is kept, and a resumed run does it again"
        )


def full_cost(federation: Federation, rounds: int) -> Cost:
    """Count what the first `rounds` rounds cost when the clients that are asked train the full model, as in FedAvg."""
    message = packed_bytes(federation.initial)
    experiment, clients = federation.experiment, federation.context.clients
    asked = asked_clients(experiment.participation, len(clients))
    epochs = [experiment.epochs_in(round) for round in range(rounds)]
    image = TRAINING_FACTOR * federation.full.forward_macs
    slowest = [
        max(client.device.seconds(message, image * client.samples * each, message).total for client in clients)
        for each in epochs
    ]
    return Cost(
        bytes_down=message * asked * rounds,
        bytes_up=message * asked * rounds,
        training_macs=image * sum(client.samples for client in clients) * sum(epochs) * asked // len(clients),
        forward_macs=federation.full.forward_macs,
        parameters=federation.full.parameters,
        peak_bytes=federation.full.peak_bytes,
        seconds=sum(slowest),
    )
