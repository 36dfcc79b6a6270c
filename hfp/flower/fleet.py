"""Flower's nodes as a fleet: the tasks of a round go out as letters, and the replies come back as task results."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from hfp.costs.payload import layout
from hfp.errors import InputError
from hfp.federation import wire
from hfp.federation.fleet import TaskResult
from hfp.federation.lanes import Write
from hfp.federation.letter import Letter
from hfp.federation.records import REFUSED
from hfp.flower.nodes import Nodes
from hfp.flower.post import Heard
from hfp.methods import Client, MethodContext, State, Task


class Flower:
    """A `hfp.federation.fleet.Fleet` of Flower nodes. Tensors that are sent or received are in main memory (CPU)."""

    home = torch.device("cpu")

    def __init__(self, nodes: Nodes, context: MethodContext, weights: State) -> None:
        self._nodes, self._context = nodes, context
        self._digest = wire.digest(context, weights)
        self._has: dict[int, tuple[int, frozenset[str]]] = {}
        self._first = True

    def reachable(self, round: int, clients: Sequence[Client]) -> Sequence[Client]:
        """Wait for enough nodes, then return the clients whose nodes are there and owe no answer.

        Raises:
            QuorumError: too few nodes are there for longer than the settings allow.
        """
        self._nodes.gather(everyone=self._first)
        self._first = False
        free = self._nodes.free()
        return [client for client in clients if client.index in free and self._nodes.fits(client, self._digest)]

    def train(self, round: int, clients: Sequence[Client], write: Write) -> Iterator[TaskResult]:
        """Have the clients' nodes do their tasks at the same time, and yield the results in the clients' order."""
        sent: dict[int, int] = {}

        def compose(client: Client) -> Letter:
            letter = wire.write_task(self._context, round, client, write(client), self._known(client))
            sent[client.index] = sent.get(client.index, 0) + len(letter.body)
            return letter

        for client, heard in self._nodes.converse("train", clients, compose):
            if _forgotten(heard):
                self._has.pop(client.index, None)
                heard = next(self._nodes.converse("train", [client], compose))[1]
            yield self._task_result(round, client, write(client), sent.get(client.index, 0), heard)

    def _task_result(self, round: int, client: Client, task: Task, down: int, heard: Heard) -> TaskResult:
        if heard.letter is None:
            return TaskResult(client, task, down, status=heard.status, problem=heard.problem)
        up = len(heard.letter.body)
        try:
            reply, kept = wire.read_reply(self._context, round, client, task, heard.letter)
        except InputError as error:
            return TaskResult(client, task, down, up, status=REFUSED, problem=" ".join(str(error).split()))
        self._has[client.index] = self._nodes.nodes[client.index].id, kept
        return TaskResult(client, task, down, up, reply)

    def _known(self, client: Client) -> frozenset[str]:
        """Return the names of what the client's node keeps, as it said last. A node that came back may have lost it."""
        node, kept = self._has.get(client.index, (None, frozenset()))
        return kept if node == self._nodes.nodes[client.index].id else frozenset()

    def statistics(self, round: int, clients: Sequence[Client], weights: State) -> Iterator[tuple[Client, State | str]]:
        """Yield the clients, each with its batch-norm statistics or why they can't be read."""
        letter = wire.write_state(wire.GLOBAL, weights, layout(weights))
        known = wire.statistics_layout(self._context.model)
        for client, heard in self._nodes.converse("statistics", clients, lambda _: letter):
            if heard.letter is None:
                yield client, heard.problem
                continue
            try:
                yield client, wire.read_state(wire.STATISTICS, heard.letter, known)
            except InputError as error:
                yield client, str(error)


def _forgotten(heard: Heard) -> bool:
    failure = wire.failure_in(heard.letter) if heard.letter else None
    return failure is not None and failure[0] == wire.FORGOTTEN
