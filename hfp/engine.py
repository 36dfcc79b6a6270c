"""The embedded engine: runs every client of a federation in this process, one after the other."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from hfp import batchnorm
from hfp.client import LocalData, batches, evaluate
from hfp.costs import TRAINING_FACTOR, MacCounter, macs, parameters
from hfp.experiment import Experiment
from hfp.federation import Federation, needs_reestimation, set_up
from hfp.methods import Client, Local, ServerState, State, Update
from hfp.payload import layout, pack, unpack
from hfp.reconstruct import IndexMap, compact_model
from hfp.records import ClientRecord, Cost, RoundRecord, Run


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
    state = federation.method.start(federation.setting, federation.initial)
    evaluator = _Evaluator(federation)
    trainer = _Trainer(federation)
    for _ in range(federation.experiment.rounds):
        begun = time.perf_counter()
        phase = federation.method.phase(state)
        collector = federation.method.collect(federation.setting, state)
        records = []
        for client in federation.method.select(federation.setting, state, federation.setting.clients):
            update, client_record = trainer.run(state, client, federation.shards[client.index])
            collector.add(update)
            records.append(client_record)
            if on_client is not None:
                on_client(client_record)
        state = evaluator.refresh(collector.finish())
        accuracy, loss = evaluator.score(state)
        record = RoundRecord(
            round=state.round,
            phase=phase,
            accuracy=accuracy,
            loss=loss,
            clients=tuple(records),
            statistics=evaluator.traffic,
            seconds=time.perf_counter() - begun,
        )
        yield Outcome(record, state)


def full_cost(federation: Federation) -> Cost:
    """What one round costs when every client trains the full model, as FedAvg does."""
    message = len(pack(federation.initial))
    samples = sum(client.samples for client in federation.setting.clients) * federation.experiment.epochs
    clients = len(federation.setting.clients)
    forward = macs(federation.model, federation.setting.example)
    return Cost(
        bytes_down=message * clients,
        bytes_up=message * clients,
        training_macs=TRAINING_FACTOR * forward * samples,
        forward_macs=forward,
        parameters=parameters(federation.model),
    )


class _Trainer:
    """Sends a task, has it done, takes the reply; everything passes through the bytes that would cross the wire."""

    def __init__(self, federation: Federation) -> None:
        self._federation = federation
        self._count = MacCounter(federation.setting.example)

    def run(self, state: ServerState, client: Client, data: LocalData) -> tuple[Update, ClientRecord]:
        federation = self._federation
        method, setting = federation.method, federation.setting
        task = method.send(setting, state, client, method.plan(setting, state, client))
        down = pack(task.tensors)
        received = dataclasses.replace(task, tensors=unpack(down, layout(task.tensors)))
        reply = method.train(self._local(state, client, data), received)
        up = pack(reply.tensors)
        reply = dataclasses.replace(reply, tensors=unpack(up, layout(reply.tensors)))
        record = ClientRecord(
            client=client.index,
            ratio=client.ratio,
            samples=client.samples,
            steps=reply.steps,
            loss=reply.loss,
            bytes_down=len(down),
            bytes_up=len(up),
            parameters=reply.parameters,
            forward_macs=reply.forward_macs,
            training_macs=reply.training_macs,
        )
        return Update(client, task, reply, federation.training.step_size), record

    def _local(self, state: ServerState, client: Client, data: LocalData) -> Local:
        federation = self._federation
        return Local(
            client=client,
            round=state.round,
            model=federation.model,
            groups=federation.setting.groups,
            data=data,
            training=federation.training,
            count=self._count,
            seed=federation.experiment.seed,
            device=federation.device,
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
