"""A client's own side of a round: its data, how it trains, and the full model's architecture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from hfp.costs.macs import TRAINING_FACTOR, MacCounter, parameters
from hfp.costs.memory import PeakBytesCounter
from hfp.methods.interface.values import Client, Reply, State, Task
from hfp.models import classifier_of
from hfp.reconstruct import Coupling, IndexMap, compact_model
from hfp.seeds import generator
from hfp.training.local_step import LocalData, LocalResult, LocalTraining, Objective, schedule_of, train
from hfp.training.shells import Lease


@dataclass(frozen=True, eq=False)
class ClientContext:
    """What a client has at hand when a task arrives.

    Args:
        client: who it is.
        round: the round, counted from 0.
        model: the full model, of which only the architecture counts.
        groups: its coupled groups.
        data: the client's own data.
        training: how it trains.
        count: counts the multiply-accumulates of a model's forward pass.
        count_peak_bytes: counts the bytes that training a model keeps.
        seed: the run's seed.
        device: where the client computes.
        shells: compact models that are used again; one that is taken is the client's until it has replied. By default
            every compact model is made anew.

    Attributes:
        random: draws the shuffling and augmentation, the same for every method under one seed.
    """

    client: Client
    round: int
    model: nn.Module
    groups: Coupling
    data: LocalData
    training: LocalTraining
    count: MacCounter
    count_peak_bytes: PeakBytesCounter
    seed: int
    device: torch.device
    shells: Lease | None = None
    random: torch.Generator = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "random", self.draws("batches"))

    def build(self, task: Task) -> nn.Module:
        """Make the compact model of a task whose tensors are its state."""
        return self.model_of(task.index_map, task.tensors)

    def model_of(self, index_map: IndexMap, state: State) -> nn.Module:
        """Make the compact model of `index_map` on the client's device, with copies of the values in `state`.

        Raises:
            MapError: the map is of another model, or `state` is not its compact state.
        """
        if self.shells is not None:
            return self.shells.build(index_map, state)
        return compact_model(self.model, index_map, state).to(self.device)

    def schedule(self) -> list[Tensor]:
        """Draw the batches of this round's epochs."""
        return schedule_of(len(self.data.labels), self.training, self.random)

    def fit(
        self, model: nn.Module, objective: Objective | None = None, schedule: Sequence[Tensor] | None = None
    ) -> LocalResult:
        """Train `model` in place on the batches of `schedule`, by default those of all epochs.

        Raises:
            InputError: training diverged.
        """
        objective = Objective() if objective is None else objective
        schedule = self.schedule() if schedule is None else schedule
        fit = train if self.shells is None else self.shells.train
        return fit(model, self.data, self.training, self.random, objective, schedule)

    @property
    def classes(self) -> int:
        """The number of classes that the model tells apart."""
        return len(list(classifier_of(self.model).parameters())[-1])

    def draws(self, purpose: str) -> torch.Generator:
        """Return a generator for a purpose of the method's own. `random` is not advanced by it."""
        return generator(self.seed, purpose, self.round, self.client.index)

    def peak(self, model: nn.Module) -> int:
        """Count the bytes that training `model` keeps."""
        return self.count_peak_bytes(model, min(self.training.batch_size, len(self.data.labels)))

    def reply(
        self,
        model: nn.Module,
        result: LocalResult,
        *,
        also: State | None = None,
        training_macs: int | None = None,
        peak_bytes: int | None = None,
    ) -> Reply:
        """Write the reply: the state of `model` and the figures of its training.

        Args:
            model: the model that training ended with.
            result: what training took.
            also: tensors to send beside the state.
            training_macs: the multiply-accumulates of all steps; by default every step trained all of `model`.
            peak_bytes: the bytes that training kept; by default what training `model` alone keeps.
        """
        forward = self.count(model)
        return Reply(
            tensors={**model.state_dict(), **(also or {})},
            steps=result.steps,
            samples=result.samples,
            loss=result.loss,
            parameters=parameters(model),
            forward_macs=forward,
            training_macs=TRAINING_FACTOR * forward * result.samples if training_macs is None else training_macs,
            peak_bytes=self.peak(model) if peak_bytes is None else peak_bytes,
            variance=result.variance,
        )
