"""What a federated method is: a plan for each client, what the client does with it, how replies become a new state.

One round: ``select`` some of the clients; ``plan`` for each of them which channels it trains and ``send`` it a `Task`;
it trains under an ``objective`` and answers with a `Reply`; a collector folds the replies into the next `ServerState`.
Only `plan` and `collect` have no default: `hfp/methods/fedavg.py` is a whole method.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import ClassVar, Protocol

from torch import nn

from hfp.errors import InputError
from hfp.methods.interface.client_context import ClientContext
from hfp.methods.interface.values import Client, MethodContext, Reply, ServerState, State, Task, TrainedPart, Update
from hfp.reconstruct import Plan
from hfp.settings import check_settings
from hfp.training.local_step import Objective


class Collector(Protocol):
    """Takes one update at a time and holds one model's worth of memory, however many clients there are."""

    def add(self, update: Update) -> None:
        """Fold one client's update in."""

    def finish(self) -> ServerState:
        """The state of the next round."""


class Method(ABC):
    """A federated algorithm. Subclasses are frozen dataclasses whose fields are the method's options (`hfp.settings`).

    `name` is what a person types, `source` where the method is published. The server's and the client's half run in
    different processes when need be: all that passes between them is in `Task` and `Reply`.
    """

    name: ClassVar[str]
    source: ClassVar[str]
    summary: ClassVar[str]
    extra_tensor_prefixes: ClassVar[tuple[str, ...]] = ()
    """How the names of tensors begin that a reply may have beside the model's."""
    renamed_options: ClassVar[Mapping[str, str]] = MappingProxyType({})
    """Earlier names of options, which keep working with a warning, and today's."""
    uses_ratios: ClassVar[bool] = True
    """Whether a client's ratio makes any difference; a comparison runs what it doesn't matter to only once."""
    clip_norm: ClassVar[float] = 0.0
    """The norm at which local gradients are clipped where the experiment does not say; 0 for never."""

    @classmethod
    def option_label(cls) -> str:
        """What an error calls one of the method's options, with ``{}`` for its name."""
        return f"option {{}} of {cls.name}"

    def __post_init__(self) -> None:
        """Check the options as they are declared. A method that checks more calls this first.

        Raises:
            InputError: an option is of another kind, outside its range, or none of its choices.
        """
        check_settings(self, self.option_label())

    def check(self, context: MethodContext) -> None:
        """Refuse a setting that the method can't work in.

        Raises:
            InputError: a client's ratio leaves a layer without channels, say.
        """
        return

    def start(self, context: MethodContext, weights: State) -> ServerState:
        """The state before the first round."""
        return ServerState(round=0, weights=weights)

    def select(self, context: MethodContext, state: ServerState, clients: Sequence[Client]) -> Sequence[Client]:
        """Those of the reachable `clients` that take part in the coming round: all of them."""
        return clients

    @abstractmethod
    def plan(self, context: MethodContext, state: ServerState, client: Client) -> Plan:
        """The channels that `client` trains in the coming round."""

    def send(self, context: MethodContext, state: ServerState, client: Client, plan: Plan) -> Task:
        """What `client` is sent: the compact state of its plan."""
        index_map = context.groups.index_map(plan)
        return Task(plan, index_map, index_map.restrict(state.weights))

    def train(self, local: ClientContext, task: Task) -> Reply:
        """At the client: train the compact model under the method's objective and answer with its state."""
        model = local.build(task)
        return local.reply(model, local.fit(model, self.objective(local, task, model)))

    def keep(self, task: Task, reply: Reply) -> State:
        """At the client: what it keeps of a task and its reply, for later tasks to have among their `known`."""
        return {}

    def objective(self, local: ClientContext, task: Task, model: nn.Module) -> Objective:
        """At the client: what `train` minimises on the compact `model`, which may be given hooks: cross-entropy."""
        return Objective()

    @abstractmethod
    def collect(self, context: MethodContext, state: ServerState) -> Collector:
        """A collector for the coming round's updates."""

    def trained_part(self, context: MethodContext, state: ServerState, update: Update) -> TrainedPart:
        """What an update says about the full model: the entries of its task, before and after."""
        names = update.task.index_map.tensors
        return TrainedPart(
            update.task.index_map, update.task.tensors, {name: update.reply.tensors[name] for name in names}
        )

    def check_reply(self, context: MethodContext, state: ServerState, update: Update) -> None:
        """Refuse a reply that is no answer to its task, before anything is done with it.

        Raises:
            InputError, MapError: other names, shapes or dtypes than the task asks for.
        """
        missing = update.task.index_map.tensors.keys() - update.reply.tensors.keys()
        if missing:
            raise InputError(f"the reply lacks {', '.join(sorted(missing)[:4])}")
        trained_part = self.trained_part(context, state, update)
        surplus = {
            name
            for name in update.reply.tensors.keys() - trained_part.after.keys()
            if not name.startswith(self.extra_tensor_prefixes)
        }
        if surplus:
            raise InputError(f"the reply has unexpected tensors: {', '.join(sorted(surplus)[:4])}")
        trained_part.index_map.check_compact(trained_part.after)
        for name, tensor in trained_part.after.items():
            if tensor.dtype != state.weights[name].dtype:
                raise InputError(f"{name} must be {state.weights[name].dtype}; found {tensor.dtype}")

    def rebase(self, context: MethodContext, state: ServerState, update: Update) -> Update | None:
        """An update that comes in a later round: its change, made to the weights of today; None if it is of no use."""
        trained_part = self.trained_part(context, state, update)
        now = trained_part.index_map.restrict(state.weights)
        moved = {
            name: now[name] + (after - trained_part.before[name]) if after.is_floating_point() else after
            for name, after in trained_part.after.items()
        }
        task = dataclasses.replace(update.task, tensors=now)
        reply = dataclasses.replace(update.reply, tensors={**update.reply.tensors, **moved})
        return dataclasses.replace(update, task=task, reply=reply)

    def waits_for_all(self, state: ServerState) -> bool:
        """Whether the coming round takes every reply, however late: no, the experiment's deadline holds."""
        return False

    def phase(self, state: ServerState) -> str:
        """A word for what the coming round does, shown with its figures."""
        return "train"
