"""What methods work on, as frozen values: clients, the server's state, tasks, replies and what came of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from hfp.costs.devices import PROFILES, Device, Seconds
from hfp.reconstruct import Coupling, IndexMap, Plan

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Client:
    """One client as the server knows it: `ratio` is the share of channels that its submodel leaves out."""

    index: int
    samples: int
    ratio: float
    device: Device = PROFILES["phone"]


@dataclass(frozen=True)
class ServerState:
    """The server between two rounds: the full model's state, and what the method itself remembers."""

    round: int
    weights: State
    method_state: Any = None


@dataclass(frozen=True)
class MethodContext:
    """What stays the same over a run.

    `model` is the full model, for its architecture alone, `groups` its coupled groups, `parameters` its parameters by
    name, `classifier` those of them whose first dimension is the classes, `example` one input
    `[1, channels, height, width]`. The run lasts `rounds`.
    """

    model: nn.Module
    groups: Coupling
    parameters: tuple[str, ...]
    clients: tuple[Client, ...]
    seed: int
    example: Tensor
    classifier: tuple[str, ...] = ()
    rounds: int = 30


@dataclass(frozen=True)
class Task:
    """What one client is asked to do in one round.

    `tensors` and the plain numbers in `values` cross the wire. `plan` and its `index_map` say which part of the full
    model the tensors are; a client can derive what it needs of them (the compact shapes). `known` is what it keeps from
    an earlier round and is not sent again.
    """

    plan: Plan
    index_map: IndexMap
    tensors: State
    values: Mapping[str, float] = field(default_factory=dict)
    known: State = field(default_factory=dict)


@dataclass(frozen=True)
class Reply:
    """What a client answers: `tensors` cross the wire, and the figures of its training.

    `loss` is the mean of the objective over the `samples` seen in `steps` steps. `parameters` and `forward_macs` (one
    image) are those of the model it ended with, `training_macs` those of all its steps, `peak_bytes` the bytes that
    training kept at its peak. `variance` is that of its steps' gradients, where it was to be measured.
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
    """One client's work in one round, and the simulated time that it took on the client's device.

    `step_size` is the effective length of a step: the learning rate over one minus momentum.
    """

    client: Client
    task: Task
    reply: Reply
    step_size: float
    seconds: Seconds = Seconds(0.0, 0.0, 0.0)


@dataclass(frozen=True)
class TrainedPart:
    """The part of the full model that a client trained: compact states before and after, and where their entries lie.

    `active` has a boolean mask for tensors of which only single entries were trained, in the compact shape.
    """

    index_map: IndexMap
    before: State
    after: State
    active: State = field(default_factory=dict)
