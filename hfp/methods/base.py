"""What a federated method is: a plan for each client, what the client does with it, how replies become a new state.

One round: ``select`` some of the clients; ``plan`` for each of them which channels it trains and ``send`` it a `Task`;
it trains under an ``objective`` and answers with a `Reply`; a collector folds the replies into the next `ServerState`.
Only `plan` and `collect` have no default: `hfp/methods/fedavg.py` is a whole method.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from torch import Tensor, nn

from hfp.client import Objective
from hfp.devices import PROFILES, Device, Seconds
from hfp.errors import InputError
from hfp.reconstruct import Coupling, IndexMap, Plan

if TYPE_CHECKING:
    from hfp.methods.local import Local

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
    memory: Any = None


@dataclass(frozen=True)
class Setting:
    """What stays the same over a run.

    `model` is the full model, for its architecture alone, `groups` its coupled groups, `parameters` its parameters by
    name, `classifier` those of them whose first dimension is the classes, `example` one input
    `[1, channels, height, width]`.
    """

    model: nn.Module
    groups: Coupling
    parameters: tuple[str, ...]
    clients: tuple[Client, ...]
    seed: int
    example: Tensor
    classifier: tuple[str, ...] = ()


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
    image) are those of the model it ended with, `training_macs` those of all its steps, `memory` the bytes that
    training kept at its peak. `variance` is that of its steps' gradients, where it was to be measured.
    """

    tensors: State
    steps: int
    samples: int
    loss: float
    parameters: int
    forward_macs: int
    training_macs: int
    memory: int = 0
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
class Held:
    """The part of the full model that a client trained: compact states before and after, and where their entries lie.

    `active` has a boolean mask for tensors of which only single entries were trained, in the compact shape.
    """

    index_map: IndexMap
    before: State
    after: State
    active: State = field(default_factory=dict)


class Collector(Protocol):
    """Takes one update at a time and holds one model's worth of memory, however many clients there are."""

    def add(self, update: Update) -> None:
        """Fold one client's update in."""

    def finish(self) -> ServerState:
        """The state of the next round."""


class Method(ABC):
    """A federated algorithm. Subclasses are frozen dataclasses whose fields are the method's options.

    `name` is what a person types, `source` where the method is published. The server's and the client's half run in
    different processes when need be: all that passes between them is in `Task` and `Reply`.
    """

    name: ClassVar[str]
    source: ClassVar[str]
    summary: ClassVar[str]
    asides: ClassVar[tuple[str, ...]] = ()
    """How the names of tensors begin that a reply may have beside the model's."""
    uses_ratios: ClassVar[bool] = True
    """Whether a client's ratio makes any difference; a comparison runs what it doesn't matter to only once."""

    def check(self, setting: Setting) -> None:
        """Refuse a setting that the method can't work in.

        Raises:
            InputError: a client's ratio leaves a layer without channels, say.
        """
        return

    def start(self, setting: Setting, weights: State) -> ServerState:
        """The state before the first round."""
        return ServerState(round=0, weights=weights)

    def select(self, setting: Setting, state: ServerState, clients: Sequence[Client]) -> Sequence[Client]:
        """Those of the reachable `clients` that take part in the coming round: all of them."""
        return clients

    @abstractmethod
    def plan(self, setting: Setting, state: ServerState, client: Client) -> Plan:
        """The channels that `client` trains in the coming round."""

    def send(self, setting: Setting, state: ServerState, client: Client, plan: Plan) -> Task:
        """What `client` is sent: the compact state of its plan."""
        index_map = setting.groups.index_map(plan)
        return Task(plan, index_map, index_map.restrict(state.weights))

    def train(self, local: Local, task: Task) -> Reply:
        """At the client: train the compact model under the method's objective and answer with its state."""
        model = local.build(task)
        return local.reply(model, local.fit(model, self.objective(local, task, model)))

    def keep(self, task: Task, reply: Reply) -> State:
        """At the client: what it keeps of a task and its reply, for later tasks to have among their `known`."""
        return {}

    def objective(self, local: Local, task: Task, model: nn.Module) -> Objective:
        """At the client: what `train` minimises on the compact `model`, which may be given hooks: cross-entropy."""
        return Objective()

    @abstractmethod
    def collect(self, setting: Setting, state: ServerState) -> Collector:
        """A collector for the coming round's updates."""

    def held(self, setting: Setting, state: ServerState, update: Update) -> Held:
        """What an update says about the full model: the entries of its task, before and after."""
        names = update.task.index_map.tensors
        return Held(update.task.index_map, update.task.tensors, {name: update.reply.tensors[name] for name in names})

    def check_reply(self, setting: Setting, state: ServerState, update: Update) -> None:
        """Refuse a reply that is no answer to its task, before anything is done with it.

        Raises:
            InputError, MapError: other names, shapes or dtypes than the task asks for.
        """
        missing = update.task.index_map.tensors.keys() - update.reply.tensors.keys()
        if missing:
            raise InputError(f"the reply lacks {', '.join(sorted(missing)[:4])}")
        held = self.held(setting, state, update)
        surplus = {name for name in update.reply.tensors.keys() - held.after.keys() if not name.startswith(self.asides)}
        if surplus:
            raise InputError(f"the reply has unexpected tensors: {', '.join(sorted(surplus)[:4])}")
        held.index_map.check_compact(held.after)
        for name, tensor in held.after.items():
            if tensor.dtype != state.weights[name].dtype:
                raise InputError(f"{name} must be {state.weights[name].dtype}; found {tensor.dtype}")

    def rebase(self, setting: Setting, state: ServerState, update: Update) -> Update | None:
        """An update that comes in a later round: its change, made to the weights of today; None if it is of no use."""
        held = self.held(setting, state, update)
        now = held.index_map.restrict(state.weights)
        moved = {
            name: now[name] + (after - held.before[name]) if after.is_floating_point() else after
            for name, after in held.after.items()
        }
        task = dataclasses.replace(update.task, tensors=now)
        reply = dataclasses.replace(update.reply, tensors={**update.reply.tensors, **moved})
        return dataclasses.replace(update, task=task, reply=reply)

    def phase(self, state: ServerState) -> str:
        """A word for what the coming round does, shown with its figures."""
        return "train"
