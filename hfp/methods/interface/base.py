"""What a federated method is: a plan for each client, what the client does with it, how replies become a new state.

In every round the server selects some of the clients (``select``), plans which channels each of them trains (``plan``)
and sends each a `Task` (``send``). A client trains (``train``) under an ``objective`` and answers with a `Reply`. A
collector (``collect``) folds the replies into the next `ServerState`. Only ``plan`` and ``collect`` have no default:
`hfp/methods/fedavg.py` is a whole method.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import ClassVar, Protocol

from torch import Tensor, nn

from hfp.errors import InputError
from hfp.methods.interface.client_context import ClientContext
from hfp.methods.interface.counts import keep_first
from hfp.methods.interface.values import Client, MethodContext, Reply, ServerState, State, Task, TrainedPart, Update
from hfp.reconstruct import Coupling, Plan
from hfp.settings import check_settings
from hfp.training.local_step import Objective


class Collector(Protocol):
    """Takes one update at a time, so that its memory does not grow with the number of clients."""

    def add(self, update: Update) -> None:
        """Fold one client's update in."""

    def finish(self) -> ServerState:
        """Return the state that the next round starts from."""


class Method(ABC):
    """A federated algorithm. Subclasses are frozen dataclasses whose fields are the method's options (`hfp.settings`).

    The server's and the client's half may run in different processes: all that passes between them is in `Task` and
    `Reply`. The default of every hook is what FedAvg on submodels does.
    """

    name: ClassVar[str]
    """What a person types."""
    source: ClassVar[str]
    """Where the method is published."""
    summary: ClassVar[str]
    """What the method does, in a line for `hfp methods`."""
    extra_tensor_prefixes: ClassVar[tuple[str, ...]] = ()
    """A reply may have tensors beside the model's whose names begin with one of these."""
    keeps_size: ClassVar[bool] = False
    """Whether what clients train has one size in all rounds, so that it can't grow (`Experiment.first_ratio`)."""

    @classmethod
    def option_label(cls) -> str:
        """Return what an error calls one of the method's options, with ``{}`` for its name."""
        return f"option {{}} of {cls.name}"

    @property
    def uses_ratios(self) -> bool:
        """Whether clients' ratios make a difference; if not, a comparison of several ratios runs the method once."""
        return True

    @property
    def reads_losses(self) -> bool:
        """Whether the next state also follows from the clients' losses, which `--privacy` does not protect."""
        return False

    @property
    def tells_entries(self) -> bool:
        """Whether a task's index map tells which entry each value of a reply is of, as robust rules need it."""
        return True

    def __post_init__(self) -> None:
        """Check the options as they are declared. A method that checks more calls this first.

        Raises:
            InputError: an option is of another kind, outside its range, or none of its choices.
        """
        check_settings(self, self.option_label())

    def prepare(self, model: nn.Module, example: Tensor) -> nn.Module:
        """Return the full model that the run trains, made of the one that was asked for. By default it is this one.

        Args:
            model: the model, which may become part of what is returned. A run's model is made again in the same way.
            example: one input, `[1, channels, height, width]`.
        """
        return model

    def check(self, context: MethodContext) -> None:
        """Refuse clients or a model that the method can't work with. By default nothing is refused.

        Raises:
            InputError: for instance, a client's ratio leaves a layer without channels.
        """
        return

    def removes(self, context: MethodContext) -> str:
        """Say what clients leave out of the full model, as a run's first lines do; empty where it is nothing."""
        return f"{percents(client.ratio for client in context.clients)} of their channels" if self.uses_ratios else ""

    def start(self, context: MethodContext, weights: State) -> ServerState:
        """Return the state before the first round."""
        return ServerState(round=0, weights=weights)

    def select(self, context: MethodContext, state: ServerState, clients: Sequence[Client]) -> Sequence[Client]:
        """Choose which of the reachable `clients` take part in the coming round. By default all of them do."""
        return clients

    @abstractmethod
    def plan(self, context: MethodContext, state: ServerState, client: Client) -> Plan:
        """Choose the channels that `client` trains in the coming round."""

    def send(self, context: MethodContext, state: ServerState, client: Client, plan: Plan) -> Task:
        """Write the task of `client`. By default it is the compact state of its plan."""
        index_map = context.groups.index_map(plan)
        return Task(plan, index_map, index_map.restrict(state.weights))

    def train(self, local: ClientContext, task: Task) -> Reply:
        """Do a task at the client. By default, train the compact model under `objective` and reply with its state."""
        model = local.build(task)
        return local.reply(model, local.fit(model, self.objective(local, task, model)))

    def keep(self, task: Task, reply: Reply) -> State:
        """Choose, at the client, what it keeps of a task and its reply; later tasks have it among their `known`."""
        return {}

    def objective(self, local: ClientContext, task: Task, model: nn.Module) -> Objective:
        """Make, at the client, what `train` minimises on the compact `model`. By default it is cross-entropy.

        The model may be given hooks, which last until the client has replied.
        """
        return Objective()

    @abstractmethod
    def collect(self, context: MethodContext, state: ServerState) -> Collector:
        """Make a collector for the coming round's updates."""

    def trained_part(self, context: MethodContext, state: ServerState, update: Update) -> TrainedPart:
        """Return the entries of the full model that an update trained. By default these are the entries of its task."""
        names = update.task.index_map.tensors
        return TrainedPart(
            update.task.index_map, update.task.tensors, {name: update.reply.tensors[name] for name in names}
        )

    def most_steps(self, state: ServerState, steps: int) -> int:
        """At most so many local steps can be in a reply of the coming round, where the local epochs have `steps`."""
        return steps

    def sized(self, model: nn.Module, groups: Coupling, ratio: float) -> Plan:
        """Keep as many channels of the full `model` as a client of a ratio trains, to find a budget's ratio.

        By default the share `ratio` of each coupled group goes, rounded to the nearest number of channels. Which
        channels are kept does not count.
        """
        return keep_first(groups, ratio)

    def trained_model(self, model: nn.Module, ratio: float) -> nn.Module:
        """Turn the compact `model` of a client of a ratio into what it trains, for its costs. By default that is all.

        Args:
            model: a compact model for this alone. Only the values of a model with exits count.
            ratio: the client's.
        """
        return model

    def stage(self, model: nn.Module, ratio: float) -> int:
        """Number the stage of a ratio, within which a larger ratio never costs more. By default there is one stage.

        A budget's ratio is found by bisection in each stage.

        Args:
            model: the full model.
            ratio: the ratio.
        """
        return 0

    def extra_bytes(self, model: nn.Module) -> int:
        """Count the bytes that a client keeps while it trains `model`, beside those of training it. By default none."""
        return 0

    def check_reply(self, context: MethodContext, state: ServerState, update: Update) -> None:
        """Refuse a reply that is no answer to its task, before anything is done with it.

        Raises:
            InputError: the reply has other names or dtypes than the task asks for.
            MapError: the reply has other shapes than the task asks for.
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
        """Turn an update that comes in a later round into one for the present weights, or return None to ignore it.

        By default the change that the client made is made to the present weights. Variances stay at least 0.
        """
        trained_part = self.trained_part(context, state, update)
        moved = moved_by(trained_part.index_map.restrict(state.weights), trained_part.before, trained_part.after)
        task = dataclasses.replace(update.task, tensors=update.task.index_map.restrict(state.weights))
        reply = dataclasses.replace(update.reply, tensors={**update.reply.tensors, **moved})
        return dataclasses.replace(update, task=task, reply=reply)

    def waits_for_all(self, state: ServerState) -> bool:
        """Whether the coming round takes every reply, however late: no, the experiment's deadline holds."""
        return False

    def phase(self, state: ServerState) -> str:
        """Return a word for what the coming round does, which is shown with its figures."""
        return "train"


def percents(shares: Iterable[float]) -> str:
    """Write different shares in percent, the smallest first.

    >>> percents([0.5, 0.25, 0.5])
    '25%, 50%'
    """
    return ", ".join(f"{share:.0%}" for share in sorted(set(shares)))


def moved_by(now: State, before: State, after: State) -> dict[str, Tensor]:
    """Make the change from `before` to `after` to the values of `now`. Counts become those of `after`."""
    moved = {
        name: now[name] + (tensor - before[name]) if tensor.is_floating_point() or tensor.is_complex() else tensor
        for name, tensor in after.items()
    }
    for name in moved:
        if name.endswith("running_var"):
            moved[name] = moved[name].clamp(min=0)  # a sum of variances and changes of others may be below
    return moved
