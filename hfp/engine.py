"""The embedded engine: runs every client of a federation in this process, one after the other."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from hfp import batchnorm
from hfp.client import LocalData, batches, evaluate
from hfp.cohort import Cohort, asked_clients
from hfp.costs import TRAINING_FACTOR, macs, parameters
from hfp.diagnostics import Observer
from hfp.exchange import Exchange
from hfp.experiment import Experiment
from hfp.federation import Federation, needs_reestimation, set_up
from hfp.memory import MemoryCounter
from hfp.methods import Collector, ServerState, State
from hfp.payload import pack
from hfp.reconstruct import IndexMap, compact_model
from hfp.records import LATE, ClientRecord, Cost, RoundRecord, Run


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
    return Run(experiment, tuple(history), state.weights, full_cost(federation))


def rounds(federation: Federation, on_client: Callable[[ClientRecord], None] | None = None) -> Iterator[Outcome]:
    """Yield each round's outcome as it ends; `on_client` is called after every client of a round."""
    experiment, method, setting = federation.experiment, federation.method, federation.setting
    state = method.start(setting, federation.initial)
    evaluator, exchange = _Evaluator(federation), Exchange(federation)
    observer = Observer(federation) if experiment.diagnostics else None
    cohort = Cohort(experiment, setting.clients)
    for _ in range(experiment.rounds):
        begun = time.perf_counter()
        phase = method.phase(state)
        collector = method.collect(setting, state)
        watch = observer.watch(state, collector) if observer else None
        records, heard = _ask_clients(federation, state, cohort, exchange, watch or collector, on_client)
        after = collector.finish() if heard else dataclasses.replace(state, round=state.round + 1)
        state = evaluator.refresh(after)
        accuracy, loss = evaluator.score(state)
        record = RoundRecord(
            round=state.round,
            phase=phase,
            accuracy=accuracy,
            loss=loss,
            clients=tuple(records),
            statistics=evaluator.traffic,
            seconds=time.perf_counter() - begun,
            deadline=experiment.deadline,
            diagnostics=observer.report(watch) if observer and watch and heard else None,
        )
        yield Outcome(record, state)


def _ask_clients(
    federation: Federation,
    state: ServerState,
    cohort: Cohort,
    exchange: Exchange,
    collector: Collector,
    on_client: Callable[[ClientRecord], None] | None,
) -> tuple[list[ClientRecord], int]:
    """Train this round's clients and collect what comes back: their records, and how many replies were collected."""
    method, setting = federation.method, federation.setting
    asked, records, heard = cohort.asked(state.round), [], 0
    for client in method.select(setting, state, asked) if asked else ():
        if cohort.drops_out(state.round, client):
            record = exchange.lose(state, client)
        else:
            update, record = exchange.run(state, client)
            if cohort.admit(state.round, update):
                collector.add(update)
                heard += 1
            else:
                record = dataclasses.replace(record, status=LATE)
        records.append(record)
        if on_client is not None:
            on_client(record)
    for update in cohort.arrivals(state.round):
        rebased = method.rebase(setting, state, update)
        if rebased is not None:
            collector.add(rebased)
            heard += 1
    return records, heard


def full_cost(federation: Federation) -> Cost:
    """What one round costs when the clients that are asked train the full model, as FedAvg has them do."""
    message = len(pack(federation.initial))
    experiment, clients = federation.experiment, federation.setting.clients
    samples = sum(client.samples for client in clients) * experiment.epochs
    forward = macs(federation.model, federation.setting.example)
    asked = asked_clients(experiment.participation, len(clients))
    return Cost(
        bytes_down=message * asked,
        bytes_up=message * asked,
        training_macs=TRAINING_FACTOR * forward * samples * asked // len(clients),
        forward_macs=forward,
        parameters=parameters(federation.model),
        memory=MemoryCounter(federation.setting.example)(federation.model, experiment.batch_size),
        seconds=max(
            client.device.seconds(
                message, TRAINING_FACTOR * forward * client.samples * experiment.epochs, message
            ).total
            for client in clients
        ),
    )


class _Evaluator:
    """Evaluates the global model under the run's batch-norm policy."""

    def __init__(self, federation: Federation) -> None:
        self._federation = federation
        self._model = compact_model(federation.model, IndexMap.identity(federation.model), federation.initial).to(
            federation.device
        )
        self._reestimates = needs_reestimation(federation)
        self.traffic = self._statistics_traffic()

    def refresh(self, state: ServerState) -> ServerState:
        """The state with the statistics that the policy asks for."""
        if not self._reestimates:
            return state
        pool = batchnorm.Pool()
        for client, shard in zip(self._federation.setting.clients, self._federation.shards, strict=True):
            self._model.load_state_dict(dict(state.weights))
            pool.add(batchnorm.estimate(self._model, self._inputs(shard)), weight=client.samples)
        pooled = {name: value.to(state.weights[name]) for name, value in pool.result().items()}
        return ServerState(state.round, {**state.weights, **pooled}, state.memory)

    def score(self, state: ServerState) -> tuple[float, float]:
        self._model.load_state_dict(dict(state.weights))
        test = self._federation.dataset.test
        return evaluate(self._model, test.images, test.labels, self._federation.dataset.normalise)

    def _inputs(self, shard: LocalData) -> Iterator[torch.Tensor]:
        for chosen in batches(len(shard.labels), batch_size=500):
            yield self._federation.dataset.normalise(shard.images[chosen].to(self._federation.device))

    def _statistics_traffic(self) -> tuple[int, int]:
        if not self._reestimates:
            return 0, 0
        clients = len(self._federation.setting.clients)
        full: State = self._federation.initial
        statistics = {name: tensor for name, tensor in full.items() if name.endswith(("running_mean", "running_var"))}
        return clients * len(pack(full)), clients * len(pack(statistics))
