"""Tests the global model under the run's batch-norm policy, and clients' own models on data like their own."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from hfp.costs.payload import packed_bytes
from hfp.federation.fleet import Fleet
from hfp.federation.observer import Observer
from hfp.federation.records import ClientAccuracy, ClientRecord, Personal
from hfp.federation.replies import ReplyCheck
from hfp.federation.safeguards import Safeguards
from hfp.federation.setup import Federation
from hfp.methods import Client, ServerState, State, TrainedPart, Update
from hfp.reconstruct import IndexMap, compact_model
from hfp.seeds import generator, seeded
from hfp.training import batch_norm as batchnorm
from hfp.training.local_step import LARGE_BATCH, LocalData, Predictions, on_device, predict, statistics_of

if TYPE_CHECKING:
    from hfp.federation.rounds import Outcome

POOLED = ("reestimate", "participants")
"""Batch-norm policies under which the server pools the statistics of clients."""


@dataclass(frozen=True)
class Score:
    """How well the global model does on the whole test set.

    Args:
        accuracy: the share of right answers, in percent.
        loss: the mean cross-entropy.
        f1: the mean of the classes' F1 scores, in percent.
    """

    accuracy: float
    loss: float
    f1: float


class PersonalAccuracy(Observer):
    """Tests the client's own model whenever an update comes, in the rounds that the experiment asks for it."""

    def __init__(self, federation: Federation, evaluator: Evaluator) -> None:
        self._federation, self._evaluator = federation, evaluator
        self._found: dict[int, float] = {}
        self._measures = False

    def round_began(self, state: ServerState) -> None:
        """Forget the round before."""
        self._found = {}
        self._measures = self._federation.experiment.measures_own(state.round)

    def update_came(self, state: ServerState, update: Update) -> None:
        """Test the model that the client ended its training with."""
        if self._measures:
            trained_part = self._federation.method.trained_part(self._federation.context, state, update)
            self._found[update.client.index] = self._evaluator.own(state.round, update.client.index, trained_part)

    def figures(self, outcome: Outcome) -> Mapping[str, Personal]:
        """Return the figures of the clients whose updates came and their means, or nothing where none came."""
        if not self._found:
            return {}
        clients = tuple(
            ClientAccuracy(client, own, self._evaluator.shared(client)) for client, own in self._found.items()
        )
        means = statistics.mean(one.own for one in clients), statistics.mean(one.shared for one in clients)
        return {"personal": Personal(*means, clients)}


class Evaluator:
    """Evaluates models of one federation."""

    def __init__(self, federation: Federation, fleet: Fleet, safeguards: Safeguards) -> None:
        self._federation, self._fleet, self._safeguards = federation, fleet, safeguards
        self._check, self._refused = ReplyCheck(federation), dict[int, str]()
        self._model = self._build(IndexMap.identity(federation.model), federation.initial)
        normalised = batchnorm.has_statistics(federation.model)
        self._policy = federation.experiment.batch_norm_policy if normalised else "aggregate"
        self._predictions: Predictions | None = None
        test = federation.dataset.test
        self._test = on_device(LocalData(test.images, test.labels, federation.dataset.normalise), federation.device)

    def refresh(self, state: ServerState, participants: Sequence[Client]) -> ServerState:
        """Return the state with the batch-norm statistics of the run's policy.

        Args:
            state: the one after a round.
            participants: the clients that the round asked and that did not drop out.
        """
        if self._policy not in POOLED:
            return state
        clients = participants if self._policy == "participants" else self._federation.context.clients
        found = self._safeguards.pooled(state, self._statistics(state, clients))
        pooled = {name: value.to(state.weights[name]) for name, value in found.items()}
        weights = self._federation.context.shared({**state.weights, **pooled})
        return ServerState(state.round, weights, state.method_state)

    def traffic(self, participants: Sequence[Client]) -> tuple[int, int]:
        """Count what one re-estimation of statistics after a round moves: bytes down and bytes up."""
        if self._policy not in POOLED:
            return 0, 0
        clients = participants if self._policy == "participants" else self._federation.context.clients
        down, up = self._messages
        return len(clients) * down, len(clients) * up

    def score(self, state: ServerState) -> Score:
        """Test the global model on the whole test set."""
        self._model.load_state_dict(dict(state.weights))
        found = self._predictions = self._global_predictions(state)
        return Score(100 * float(found.correct.mean()), float(found.losses.mean()), 100 * found.macro_f1)

    def own(self, round: int, client: int, trained_part: TrainedPart) -> float:
        """Compute the accuracy in percent of a client's own model on test images like its data.

        The model is the submodel that the client holds after its training, with batch-norm statistics of its images. It
        answers the whole test set, and an answer counts by the share of its class in the client's data (Chen & Chao,
        ICLR 2022, arXiv 2107.00778): no image has to be kept from training.
        """
        model = self._build(trained_part.index_map, trained_part.after)
        if batchnorm.has_statistics(model):
            federation = self._federation
            with seeded(federation.device, federation.experiment.seed, "own statistics", round, client):
                statistics_of(model, federation.shards[client], federation.training)
        return self._as_for(client, self._ask(model))

    def shared(self, client: int) -> float:
        """Compute the same for the global model that `score` tested last."""
        assert self._predictions is not None
        return self._as_for(client, self._predictions)

    def _as_for(self, client: int, found: Predictions) -> float:
        weights = class_weights(self._federation.dataset.test.labels, self._federation.shards[client].labels)
        return 100 * float((weights * found.correct).sum())

    def _global_predictions(self, state: ServerState) -> Predictions:
        if self._policy == "batch":
            with batchnorm.batch_statistics(self._model):
                return self._ask(self._model, self._mixed)
        if self._policy != "local":
            return self._ask(self._model)
        total: Predictions | None = None
        samples = 0
        for client, moments in self._statistics(state, self._federation.context.clients):
            self._model.load_state_dict({**state.weights, **moments})
            found = self._ask(self._model).times(client.samples)
            total = found if total is None else total.plus(found)
            samples += client.samples
        if total is None:  # no client could be reached
            return self._ask(self._model)
        return Predictions(total.correct / samples, total.losses / samples, total.confusion / samples)

    def with_refusal(self, record: ClientRecord) -> ClientRecord:
        """Return a client's record with the reason where its batch-norm statistics were not used in this round."""
        problem = self._refused.get(record.client, "")
        said = "; ".join(part for part in (record.problem, problem) if part)
        return dataclasses.replace(record, problem=said) if problem else record

    def _statistics(self, state: ServerState, clients: Sequence[Client]) -> Iterator[tuple[Client, State]]:
        """Measure the statistics of those clients that can be reached, and leave out what can't be used."""
        present, problems, usable = self._fleet.reachable(state.round, clients), dict[int, str](), []
        for client, found in self._fleet.statistics(state.round, present, state.weights):
            problem = found if isinstance(found, str) else self._check.statistics_problem(found)
            if problem:
                problems[client.index] = problem
            elif not isinstance(found, str):
                usable.append((client, found))
        problems |= self._check.outlying_statistics(usable)
        self._refused = {index: f"its batch-norm statistics are refused: {why}" for index, why in problems.items()}
        yield from ((client, found) for client, found in usable if client.index not in problems)

    def _ask(self, model: nn.Module, schedule: Sequence[Tensor] | None = None) -> Predictions:
        """Predict the whole test set, in evaluation mode unless a schedule of batches is given."""
        if schedule is None:
            model.eval()
            schedule = torch.arange(len(self._test.labels)).split(LARGE_BATCH)
        federation = self._federation
        with seeded(federation.device, federation.experiment.seed, "test"):  # some layers draw at random here too
            return predict(model, self._test, schedule, federation.training)

    def _build(self, index_map: IndexMap, state: State) -> nn.Module:
        return compact_model(self._federation.model, index_map, state).to(self._federation.device)

    @property
    def _mixed(self) -> tuple[Tensor, ...]:
        """Split the test set into random batches of equal size, so that no batch has only one class."""
        samples = len(self._federation.dataset.test)
        order = torch.randperm(samples, generator=generator(self._federation.experiment.seed, "test batches"))
        return order.tensor_split(max(1, round(samples / LARGE_BATCH)))

    @cached_property
    def _messages(self) -> tuple[int, int]:
        """Bytes of the full model, and of its statistics."""
        full: State = self._federation.initial
        moments = {name: full[name] for name in batchnorm.statistics_names(self._federation.model)}
        return packed_bytes(full), packed_bytes(moments)


def class_weights(test: Tensor, own: Tensor) -> Tensor:
    """Weight test samples so that each class has the share that it has among the labels `own`.

    Returns:
        Weights, float64 `[samples]`. They sum to 1 unless a class has no test sample.
    """
    classes = int(max(test.max(), own.max())) + 1
    shares = torch.bincount(own, minlength=classes).double() / len(own)
    return (shares / torch.bincount(test, minlength=classes).clamp(min=1))[test]
