"""Who runs the clients of a round: this process here, Flower's nodes in `hfp.flower`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from hfp.costs.payload import packed_bytes
from hfp.federation.client_runner import Clients
from hfp.federation.records import IN_TIME
from hfp.federation.setup import Federation
from hfp.methods import Client, Reply, State, Task

Write = Callable[[Client], Task]


@dataclass(frozen=True)
class TaskResult:
    """What came of one client's task: a reply, or why there is none (a status of `hfp.federation.records`, a sentence)."""

    client: Client
    task: Task
    bytes_down: int
    bytes_up: int = 0
    reply: Reply | None = None
    status: str = IN_TIME
    problem: str = ""


class Fleet(Protocol):
    """Runs clients, wherever they are."""

    def reachable(self, round: int, clients: Sequence[Client]) -> Sequence[Client]:
        """Those of `clients` that a task can be sent to now."""

    def train(self, round: int, clients: Sequence[Client], write: Write) -> Iterator[TaskResult]:
        """Have every client do its task, written by `write`; the answers come in the order of `clients`.

        `write` gives the same task each time that it is called in a round, so that none need be held meanwhile.
        """

    def statistics(self, round: int, clients: Sequence[Client], weights: State) -> Iterator[tuple[Client, State]]:
        """The batch-norm statistics of a full model on the clients' data, in the order of `clients`."""


class InProcess:
    """Runs clients in this process, one after the other.

    Nothing is packed to be unpacked: the bytes of a task and of its reply are those that `hfp.costs.payload.pack` would
    write.
    """

    def __init__(self, federation: Federation) -> None:
        self._federation, self._clients = federation, Clients(federation)

    def reachable(self, round: int, clients: Sequence[Client]) -> Sequence[Client]:
        """All of them."""
        return clients

    def train(self, round: int, clients: Sequence[Client], write: Write) -> Iterator[TaskResult]:
        """One after the other.

        Raises:
            InputError: training diverged.
        """
        for client in clients:
            task = write(client)
            reply = self._clients.train(round, client, task)
            yield TaskResult(client, task, packed_bytes(task.tensors), packed_bytes(reply.tensors), reply)

    def statistics(self, round: int, clients: Sequence[Client], weights: State) -> Iterator[tuple[Client, State]]:
        """One after the other."""
        for client in clients:
            yield client, self._clients.statistics(client, weights)
