"""What a federated method is: it plans a submodel for each client, and folds the clients' updates into a new state."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from torch import Tensor

from hfp.reconstruct import ChannelGroups, IndexMap

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Client:
    """One client as the server knows it: `ratio` is the share of channels that its submodel leaves out."""

    index: int
    samples: int
    ratio: float


@dataclass(frozen=True)
class ServerState:
    """The server between two rounds: the full model's state, and what the method itself remembers."""

    round: int
    weights: State
    memory: Any = None


@dataclass(frozen=True)
class Setting:
    """What stays the same over a run: the full model's coupled groups and parameters by name, clients, the seed."""

    groups: ChannelGroups
    parameters: tuple[str, ...]
    clients: tuple[Client, ...]
    seed: int


@dataclass(frozen=True)
class Update:
    """One client's work in one round, in the coordinates of its compact submodel.

    `received` and `state` are the compact states before and after training; `step_size` is the effective length of
    one step (learning rate over one minus momentum) and `steps` how many were taken.
    """

    client: Client
    index_map: IndexMap
    received: State
    state: State
    steps: int
    step_size: float
    loss: float


class Collector(Protocol):
    """Takes one update at a time and holds one model's worth of memory, however many clients there are."""

    def add(self, update: Update) -> None:
        """Fold one client's update in."""

    def finish(self) -> ServerState:
        """The state of the next round."""


class Method(ABC):
    """A federated algorithm. Subclasses are frozen dataclasses whose fields are the method's options.

    `name` is what a person types, `source` where the method is published.
    """

    name: ClassVar[str]
    source: ClassVar[str]
    summary: ClassVar[str]

    def check(self, setting: Setting) -> None:
        """Refuse a setting that the method can't work in.

        Raises:
            InputError: a client's ratio leaves a layer without channels, say.
        """
        return

    def start(self, setting: Setting, weights: State) -> ServerState:
        """The state before the first round."""
        return ServerState(round=0, weights=weights)

    @abstractmethod
    def plan(self, setting: Setting, state: ServerState, client: Client) -> IndexMap:
        """The submodel that `client` trains in the coming round."""

    @abstractmethod
    def collect(self, setting: Setting, state: ServerState) -> Collector:
        """A collector for the coming round's updates."""

    def phase(self, state: ServerState) -> str:
        """A word for what the coming round does, shown with its figures."""
        return "train"
