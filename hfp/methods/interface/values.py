"""The frozen values that methods work on: clients, the server's state, tasks, replies and updates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from hfp.costs.devices import PROFILES, Device, Seconds
from hfp.reconstruct import Coupling, IndexMap, Plan

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Client:
    """One client as the server knows it.

    Args:
        index: its place among the run's clients, from 0.
        samples: how many training samples it has.
        ratio: the share of channels that its submodel leaves out, in [0, 1).
        device: the simulated device that it computes on.
    """

    index: int
    samples: int
    ratio: float
    device: Device = PROFILES["phone"]


@dataclass(frozen=True)
class ServerState:
    """The server between two rounds.

    Args:
        round: how many rounds are over.
        weights: the full model's state.
        method_state: what the method itself remembers.
    """

    round: int
    weights: State
    method_state: Any = None


@dataclass(frozen=True)
class MethodContext:
    """What stays the same over a run.

    Args:
        model: the full model, of which only the architecture counts.
        groups: its coupled groups.
        parameters: the names of its parameters.
        clients: all clients, in the order of their indices.
        seed: the run's seed.
        example: one input, `[1, channels, height, width]`.
        classifier: the names of the parameters whose first dimension is the classes.
        rounds: how many rounds the run lasts.
    """

    model: nn.Module
    groups: Coupling
    parameters: tuple[str, ...]
    clients: tuple[Client, ...]
    seed: int
    example: Tensor
    classifier: tuple[str, ...] = ()
    rounds: int = 30

    @cached_property
    def trained(self) -> tuple[str, ...]:
        """The names of the parameters that clients train: those that require gradients."""
        known = dict(self.model.named_parameters())
        return tuple(name for name in self.parameters if known[name].requires_grad)

    def shared(self, weights: State) -> dict[str, Tensor]:
        """Return a full state in which a tensor that the model has under several names has one value.

        It is that of its first name, which of a parameter is the one among `parameters`.
        """
        return {**weights, **{name: weights[first].clone() for name, first in self._further_names.items()}}

    @cached_property
    def _further_names(self) -> Mapping[str, str]:
        first: dict[int, str] = {}
        state = self.model.state_dict(keep_vars=True)
        names = {name: first.setdefault(id(value), name) for name, value in state.items() if isinstance(value, Tensor)}
        return {name: other for name, other in names.items() if name != other}


@dataclass(frozen=True)
class Task:
    """What one client is asked to do in one round.

    Args:
        plan: the channels of the full model that the client trains.
        index_map: where the entries of the plan lie. A client derives the compact shapes from it.
        tensors: the compact state; it crosses the wire.
        values: plain numbers that cross the wire too.
        known: what the client keeps from an earlier round, so that it is not sent again.
    """

    plan: Plan
    index_map: IndexMap
    tensors: State
    values: Mapping[str, float] = field(default_factory=dict)
    known: State = field(default_factory=dict)


@dataclass(frozen=True)
class Reply:
    """What a client answers, all of which crosses the wire.

    Args:
        tensors: the trained compact state, and what else the method sends.
        steps: the number of local steps.
        samples: the number of samples seen in all steps.
        loss: the mean of the objective over these samples.
        parameters: the number of parameters of the model that training ended with.
        forward_macs: the multiply-accumulates of one image through that model.
        training_macs: the multiply-accumulates of all steps.
        peak_bytes: the bytes that training kept at its peak.
        variance: the variance of the steps' gradients, None where it was not measured.
    """

    tensors: State
    steps: int
    samples: int
    loss: float
    parameters: int
    forward_macs: int
    training_macs: int
    peak_bytes: int = 0
    variance: float | None = None


@dataclass(frozen=True)
class Update:
    """One client's work in one round.

    Args:
        client: who did it.
        task: what was asked.
        reply: what was answered.
        step_size: the effective length of a step, which is the learning rate over one minus momentum.
        seconds: the simulated time that the work took on the client's device.
    """

    client: Client
    task: Task
    reply: Reply
    step_size: float
    seconds: Seconds = Seconds(0.0, 0.0, 0.0)


@dataclass(frozen=True)
class TrainedPart:
    """The part of the full model that a client trained.

    Args:
        index_map: where the entries lie in the full model.
        before: the compact state that the client started from.
        after: the compact state that it ended with.
        active: for each tensor of which only single entries were trained, a boolean mask in the compact shape.
    """

    index_map: IndexMap
    before: State
    after: State
    active: State = field(default_factory=dict)
