"""Fleets run the clients of a round. This one uses the present process; `hfp.flower` has one of Flower's nodes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from hfp.costs.payload import packed_bytes
from hfp.errors import InputError
from hfp.federation.client_runner import Clients
from hfp.federation.lanes import Lanes, Write
from hfp.federation.records import FAILED, IN_TIME
from hfp.federation.setup import Federation
from hfp.methods import Client, Reply, State, Task
from hfp.training.local_step import LocalData


@dataclass(frozen=True)
class TaskResult:
    """What came of one client's task.

    Args:
        client: who was asked.
        task: what was asked.
        bytes_down: bytes of the task.
        bytes_up: bytes of the reply.
        reply: what was answered, None if nothing was.
        status: one of the statuses of `hfp.federation.records`.
        problem: why there is no reply, in a sentence.
    """

    client: Client
    task: Task
    bytes_down: int
    bytes_up: int = 0
    reply: Reply | None = None
    status: str = IN_TIME
    problem: str = ""


class Fleet(Protocol):
    """Runs clients, wherever they are. The server keeps its state on the fleet's device `home`."""

    @property
    def home(self) -> torch.device:
        """The device of the tensors that the fleet takes and returns."""

    def reachable(self, round: int, clients: Sequence[Client]) -> Sequence[Client]:
        """Return those of `clients` that a task can be sent to now."""

    def train(self, round: int, clients: Sequence[Client], write: Write) -> Iterator[TaskResult]:
        """Have every client do the task that `write` returns for it, and yield the results in the order of `clients`.

        In one round `write` returns the same task each time, so that no task has to be kept meanwhile.
        """

    def statistics(self, round: int, clients: Sequence[Client], weights: State) -> Iterator[tuple[Client, State | str]]:
        """Yield the clients in order, with a full model's batch-norm statistics or the reason that there are none."""


class InProcess:
    """Runs clients in this process: one after the other on the processor, several at once on a GPU.

    Messages are not packed here. Their bytes are counted as those that `hfp.costs.payload.pack` would write.
    """

    def __init__(self, federation: Federation) -> None:
        shards: dict[int, LocalData] = {}
        self._federation, self._clients = federation, Clients(federation, shards=shards)
        self._lanes = Lanes.of(federation, shards) if federation.device.type == "cuda" else None

    @property
    def home(self) -> torch.device:
        """The device that clients train on."""
        return self._federation.device

    def reachable(self, round: int, clients: Sequence[Client]) -> Sequence[Client]:
        """Return all of `clients`."""
        return clients

    def train(self, round: int, clients: Sequence[Client], write: Write) -> Iterator[TaskResult]:
        """Have every client do its task. A client whose training diverges has failed, and the others go on."""
        if self._lanes is not None:
            replies = self._lanes.train(round, clients, write)
        else:
            replies = self._in_turn(round, clients, write)
        for client, task, reply in replies:
            down = packed_bytes(task.tensors)
            if isinstance(reply, InputError):
                yield TaskResult(client, task, down, status=FAILED, problem=" ".join(str(reply).split()))
            else:
                yield TaskResult(client, task, down, packed_bytes(reply.tensors), reply)

    def _in_turn(
        self, round: int, clients: Sequence[Client], write: Write
    ) -> Iterator[tuple[Client, Task, Reply | InputError]]:
        for client in clients:
            task = write(client)
            reply: Reply | InputError
            try:
                reply = self._clients.train(round, client, task)
            except InputError as error:
                reply = error
            yield client, task, reply

    def statistics(self, round: int, clients: Sequence[Client], weights: State) -> Iterator[tuple[Client, State]]:
        """Measure the statistics of one client after the other."""
        for client in clients:
            yield client, self._clients.statistics(client, weights)
