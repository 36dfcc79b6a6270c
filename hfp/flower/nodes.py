"""Flower's nodes as a fleet: tasks go out as messages, replies come back in a fixed order, whoever answers first."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from flwr.app import Message, MessageType
from flwr.serverapp import Grid

from hfp.costs.payload import layout
from hfp.errors import InputError
from hfp.federation.fleet import TaskResult
from hfp.federation.lanes import Write
from hfp.federation.records import DROPPED, FAILED, IN_TIME, REFUSED
from hfp.flower import wire
from hfp.flower.letter import Letter, from_records, to_records
from hfp.flower.settings import Settings
from hfp.methods import Client, MethodContext, State, Task

SHORTEST, LONGEST = 0.02, 0.5  # seconds between looks for messages: twice as long each time that there are none
PATIENCE = 5.0  # seconds that a message outlives its round, so that its end is heard of
TRIES = 3  # of pushing a message
KINDS = {"hello": MessageType.QUERY, "train": MessageType.TRAIN, "statistics": MessageType.EVALUATE}

Say = Callable[[str], None]
Compose = Callable[[Client], Letter]


class QuorumError(InputError):
    """Fewer nodes than the run needs, for longer than it waits."""


@dataclass(frozen=True)
class Node:
    """A node that has said which client it is."""

    id: int
    client: int
    samples: int
    digest: str


@dataclass(frozen=True)
class Heard:
    """What came of one message: a letter, or a status and why."""

    letter: Letter | None = None
    status: str = IN_TIME
    problem: str = ""


class Nodes:
    """The nodes on a grid. Clients are known by their partition, because a node's id changes when it comes back."""

    def __init__(self, grid: Grid, settings: Settings, clients: int, say: Say = print) -> None:
        self._grid, self._settings, self._clients, self._say = grid, settings, clients, say
        self._asked: dict[str, int] = {}
        self._refused: dict[int, int] = {}
        self._owed: dict[str, int] = {}
        self.nodes: dict[int, Node] = {}

    def gather(self, everyone: bool = False) -> None:
        """Wait until as many clients are there and free as the quorum asks, or all of them.

        Raises:
            QuorumError: they aren't after the time that the settings give.
        """
        until = time.monotonic() + self._settings.wait
        quorum = min(self._settings.quorum, self._clients)
        said, pause = False, SHORTEST
        while True:
            self.look()
            count = len(self.free())
            if count >= self._clients or (count >= quorum and not everyone):
                return
            if time.monotonic() > until:
                if count >= quorum:
                    return
                waited = f"after {self._settings.wait:g} s"
                raise QuorumError(f"{count} of the {quorum} nodes that a round needs (quorum) are there {waited}")
            if not said:
                self._say(f"waiting for nodes: {count} of {self._clients} are there, {quorum} are needed")
                said = True
            time.sleep(pause)
            pause = min(2 * pause, LONGEST)

    def look(self) -> None:
        """Note who is there now: ask new nodes who they are, forget those that left, read what late ones answer."""
        present = set(self._grid.get_node_ids())
        self.nodes = {client: node for client, node in self.nodes.items() if node.id in present}
        given_up = {node for node, times in self._refused.items() if times >= TRIES}
        met = {node.id for node in self.nodes.values()} | set(self._asked.values()) | given_up
        for node in sorted(present - met):
            pushed = self._push("hello", Letter("{}"), node, self._settings.wait)
            if pushed is not None:
                self._asked[pushed] = node
        for message in self._pull([*self._asked, *self._owed]):
            identity = message.metadata.reply_to_message_id
            self._owed.pop(identity, None)
            asked = self._asked.pop(identity, None)
            if asked is not None and asked in present:
                self._meet(asked, message)
        self._asked = {identity: node for identity, node in self._asked.items() if node in present}
        self._owed = {identity: client for identity, client in self._owed.items() if client in self.nodes}

    def free(self) -> set[int]:
        """The clients that are there and owe no answer."""
        return self.nodes.keys() - set(self._owed.values())

    def fits(self, client: Client, digest: str) -> bool:
        """Whether a client's node has the same model and data as the server takes it to have."""
        node = self.nodes[client.index]
        if (node.digest, node.samples) == (digest, client.samples):
            return True
        what = "model" if node.digest != digest else f"data, {node.samples} samples instead of {client.samples}"
        self._refuse(node.id, f"client {client.index} has another {what}")
        del self.nodes[client.index]
        return False

    def converse(self, kind: str, clients: Sequence[Client], compose: Compose) -> Iterator[tuple[Client, Heard]]:
        """Send each client what `compose` writes for it; what came of that, in the order of `clients`.

        Answers that come before their turn wait on disk, so that memory doesn't grow with the number of clients.
        """
        until = time.monotonic() + self._settings.round_timeout
        waiting, pause = deque(clients), SHORTEST
        out: dict[str, int] = {}
        with tempfile.TemporaryDirectory(prefix="hfp-") as folder:
            spool = _Spool(Path(folder))
            for client in clients:
                while client.index not in spool:
                    left = until - time.monotonic()
                    while waiting and left > 0 and len(out) < self._window():
                        sent = waiting.popleft()
                        identity = self._send(kind, sent, compose, left)
                        if identity is None:
                            spool.put(sent.index, Heard(status=DROPPED, problem="no message could be sent to its node"))
                        else:
                            out[identity] = sent.index
                    messages = self._pull(list(out))
                    for message in messages:
                        index = out.pop(message.metadata.reply_to_message_id, None)
                        if index is not None:
                            spool.put(index, _read(message))
                    if left <= 0:
                        self._owed.update(out)
                        for index in [*out.values(), *(client.index for client in waiting)]:
                            spool.put(index, Heard(status=DROPPED, problem="no answer when the round ended"))
                        out, waiting = {}, deque()
                    elif messages:
                        pause = SHORTEST
                    elif client.index not in spool:
                        time.sleep(pause)
                        pause = min(2 * pause, LONGEST)
                yield client, spool.take(client.index)

    def _window(self) -> int:
        if self._settings.in_flight:
            return self._settings.in_flight
        simulated = type(self._grid).__name__ == "InMemoryGrid"  # it holds all messages in this process
        return 2 * (os.cpu_count() or 1) if simulated else self._clients

    def _send(self, kind: str, client: Client, compose: Compose, left: float) -> str | None:
        node = self.nodes.get(client.index)
        return None if node is None else self._push(kind, compose(client), node.id, left)

    def _push(self, kind: str, letter: Letter, node: int, seconds: float) -> str | None:
        """Send one message; its id, or None where Flower does not take it."""
        for attempt in range(TRIES):
            message = Message(to_records(letter), node, KINDS[kind], ttl=seconds + PATIENCE)
            try:
                pushed = [identity for identity in self._grid.push_messages([message]) if identity]
            except Exception as error:  # the transport's own, of several libraries
                self._say(f"a message could not be sent: {type(error).__name__}: {error}")
                pushed = []
            if pushed:
                return str(pushed[0])
            time.sleep(LONGEST * attempt)
        return None

    def _pull(self, identities: Sequence[str]) -> list[Message]:
        if not identities:
            return []
        try:
            return list(self._grid.pull_messages(list(identities)))
        except Exception as error:  # as above; the messages are asked for again
            self._say(f"no messages could be read: {type(error).__name__}: {error}")
            return []

    def _meet(self, node: int, message: Message) -> None:
        heard = _read(message)
        try:
            if heard.letter is None:
                raise InputError(heard.problem)
            client, samples, digest = wire.read_hello(heard.letter)
            if client >= self._clients:
                raise InputError(f"it is partition {client}; there are {self._clients}")
            if client in self.nodes:
                raise InputError(f"it is partition {client}, which another node is already")
        except InputError as error:
            self._refuse(node, str(error))
            return
        self.nodes[client] = Node(node, client, samples, digest)
        self._say(f"client {client} is here, with {samples} samples")

    def _refuse(self, node: int, why: str) -> None:
        """Say why a node can't take part; it is asked again a few times."""
        self._refused[node] = self._refused.get(node, 0) + 1
        self._say(f"node {node} can't take part: {why}")


class Flower:
    """A `hfp.federation.fleet.Fleet` of Flower nodes: what is sent and what comes is in the processor's memory."""

    home = torch.device("cpu")

    def __init__(self, nodes: Nodes, context: MethodContext, weights: State) -> None:
        self._nodes, self._setting = nodes, context
        self._digest = wire.digest(context, weights)
        self._has: dict[int, tuple[int, frozenset[str]]] = {}
        self._first = True

    def reachable(self, round: int, clients: Sequence[Client]) -> Sequence[Client]:
        """Those whose nodes are there and owe no answer, once there are enough.

        Raises:
            QuorumError: there aren't, for too long.
        """
        self._nodes.gather(everyone=self._first)
        self._first = False
        free = self._nodes.free()
        return [client for client in clients if client.index in free and self._nodes.fits(client, self._digest)]

    def train(self, round: int, clients: Sequence[Client], write: Write) -> Iterator[TaskResult]:
        """Have the clients' nodes do their tasks, all at once."""
        sent: dict[int, int] = {}

        def compose(client: Client) -> Letter:
            letter = wire.write_task(self._setting, round, client, write(client), self._known(client))
            sent[client.index] = sent.get(client.index, 0) + len(letter.body)
            return letter

        for client, heard in self._nodes.converse("train", clients, compose):
            if _forgotten(heard):
                self._has.pop(client.index, None)
                heard = next(self._nodes.converse("train", [client], compose))[1]
            yield self._task_result(client, write(client), sent.get(client.index, 0), heard)

    def _task_result(self, client: Client, task: Task, down: int, heard: Heard) -> TaskResult:
        if heard.letter is None:
            return TaskResult(client, task, down, status=heard.status, problem=heard.problem)
        up = len(heard.letter.body)
        try:
            reply, kept = wire.read_reply(self._setting, task, heard.letter)
        except InputError as error:
            return TaskResult(client, task, down, up, status=REFUSED, problem=" ".join(str(error).split()))
        self._has[client.index] = self._nodes.nodes[client.index].id, kept
        return TaskResult(client, task, down, up, reply)

    def _known(self, client: Client) -> frozenset[str]:
        """What the client's node keeps, as it said last; a node that came back may have lost it."""
        node, kept = self._has.get(client.index, (None, frozenset()))
        return kept if node == self._nodes.nodes[client.index].id else frozenset()

    def statistics(self, round: int, clients: Sequence[Client], weights: State) -> Iterator[tuple[Client, State]]:
        """Those of the clients that answer with what can be used."""
        letter = wire.write_state(wire.GLOBAL, weights, layout(weights))
        known = wire.statistics_layout(weights)
        for client, heard in self._nodes.converse("statistics", clients, lambda _: letter):
            with contextlib.suppress(InputError):
                if heard.letter is not None:
                    yield client, wire.read_state(wire.STATISTICS, heard.letter, known)


class _Spool:
    """What has been heard of clients whose turn it is not yet, in files."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._heard: dict[int, Heard] = {}

    def __contains__(self, client: int) -> bool:
        return client in self._heard

    def put(self, client: int, heard: Heard) -> None:
        if heard.letter is not None and heard.letter.body:
            (self._folder / str(client)).write_bytes(heard.letter.body)
            heard = Heard(Letter(heard.letter.header), heard.status, heard.problem)
        self._heard[client] = heard

    def take(self, client: int) -> Heard:
        heard, path = self._heard.pop(client), self._folder / str(client)
        if heard.letter is None or not path.exists():
            return heard
        letter = Letter(heard.letter.header, path.read_bytes())
        path.unlink()
        return Heard(letter, heard.status, heard.problem)


def _forgotten(heard: Heard) -> bool:
    failure = wire.failure_in(heard.letter) if heard.letter else None
    return failure is not None and failure[0] == wire.FORGOTTEN


def _read(message: Message) -> Heard:
    """A message's letter, or why there is none."""
    if message.has_error():
        reason = " ".join(str(message.error.reason).split())[: wire.MOST_WORDS]
        return Heard(status=FAILED, problem=f"{reason} (code {message.error.code})")
    try:
        letter = from_records(message.content)
    except InputError as error:
        return Heard(status=REFUSED, problem=str(error))
    failure = wire.failure_in(letter)
    if failure and failure[0] == wire.FAILED:
        return Heard(status=FAILED, problem=failure[1])
    return Heard(letter)
