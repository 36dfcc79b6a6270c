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
    """What a client has when a task arrives in round `round`.

    `model` is the full model, for its architecture alone; `groups` its coupled groups, `count` what a forward pass
    costs, `peak_bytes` what training keeps. `random` shuffles and augments; it is the same for every method under one
    seed. Compact models come from `shells` where there are any, and are only the client's until it has replied.
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
        """The compact model of a task whose tensors are its state."""
        return self.model_of(task.index_map, task.tensors)

    def model_of(self, index_map: IndexMap, state: State) -> nn.Module:
        """The compact model of `index_map` that holds copies of the values in `state`, on the client's device.

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
        """Train `model` in place, on all epochs or on some batches of a `schedule`.

        Raises:
            InputError: training diverged.
        """
        objective = Objective() if objective is None else objective
        schedule = self.schedule() if schedule is None else schedule
        fit = train if self.shells is None else self.shells.train
        return fit(model, self.data, self.training, self.random, objective, schedule)

    @property
    def classes(self) -> int:
        """How many classes the model tells apart."""
        return len(list(classifier_of(self.model).parameters())[-1])

    def draws(self, purpose: str) -> torch.Generator:
        """A generator for one more purpose, so that batches stay the same for every method."""
        return generator(self.seed, purpose, self.round, self.client.index)

    def peak(self, model: nn.Module) -> int:
        """The bytes that training `model` keeps."""
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
        """Answer with the state of `model` and the tensors in `also`.

        `training_macs` and `peak_bytes` are needed where not every step was one of the whole of `model` alone.
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
