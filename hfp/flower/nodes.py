"""Which Flower nodes are there, which client each of them is, and which of them still owe an answer."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from flwr.app import Message
from flwr.serverapp import Grid

from hfp.errors import InputError
from hfp.federation import wire
from hfp.federation.letter import Letter
from hfp.flower.conversation import Conversation
from hfp.flower.keys import public_keys
from hfp.flower.post import LONGEST, SHORTEST, TRIES, Heard, Post, Say, read
from hfp.flower.settings import Settings
from hfp.methods import Client

Compose = Callable[[Client], Letter]


class QuorumError(InputError):
    """There are fewer nodes than the run needs, for longer than it waits."""


@dataclass(frozen=True)
class Node:
    """A node that has said which client it is."""

    id: int
    client: int
    samples: int
    digest: str


class Nodes:
    """The nodes on a grid. A client is known by its partition, because a node that comes back has a new id.

    A partition belongs to the first node that claims it, for as long as that node is there. Where the settings have
    `keys`, it belongs to the node with the client's key alone, whoever comes first.
    """

    def __init__(self, grid: Grid, settings: Settings, clients: int, say: Say) -> None:
        self._post = Post(grid, say)
        self._keys = public_keys(Path(settings.keys), clients) if settings.keys else None
        self._settings, self._clients, self._say = settings, clients, say
        self._asked: dict[str, int] = {}
        self._refused: dict[int, int] = {}
        self._owed: dict[str, int] = {}
        self.nodes: dict[int, Node] = {}

    def gather(self, everyone: bool = False) -> None:
        """Wait until as many clients as the quorum asks are there and owe no answer; with `everyone`, until all are.

        With `everyone`, the quorum suffices once the settings' `wait` seconds are over.

        Raises:
            QuorumError: fewer clients than the quorum are there after `wait` seconds.
        """
        until = time.monotonic() + self._settings.wait
        quorum = min(self._settings.quorum, self._clients)
        said, pause = False, SHORTEST
        while True:
            looked, count = self.look(), len(self.free())
            if looked and (count >= self._clients or (count >= quorum and not everyone)):
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

    def look(self) -> bool:
        """Note who is there now: ask new nodes who they are, forget nodes that left, and read late answers.

        Returns:
            Whether the grid could be asked; where it could not, nothing is known anew.
        """
        present = self._post.present()
        if present is None:
            return False
        self.nodes = {client: node for client, node in self.nodes.items() if node.id in present}
        given_up = {node for node, times in self._refused.items() if times >= TRIES}
        met = {node.id for node in self.nodes.values()} | set(self._asked.values()) | given_up
        for node in sorted(present - met):
            question = self._post.send("hello", Letter("{}"), node, self._settings.wait)
            if question is not None:
                self._asked[question] = node
        for message in self._post.replies([*self._asked, *self._owed]):
            identity = message.metadata.reply_to_message_id
            self._owed.pop(identity, None)
            asked = self._asked.pop(identity, None)
            if asked is not None and asked in present:
                self._meet(asked, message)
        self._asked = {identity: node for identity, node in self._asked.items() if node in present}
        self._owed = {identity: client for identity, client in self._owed.items() if client in self.nodes}
        return True

    def free(self) -> set[int]:
        """Return the clients that are there and owe no answer."""
        return self.nodes.keys() - set(self._owed.values())

    def fits(self, client: Client, digest: str) -> bool:
        """Whether a client's node has the model and the number of samples that the server expects of it."""
        node = self.nodes[client.index]
        if (node.digest, node.samples) == (digest, client.samples):
            return True
        what = "model" if node.digest != digest else f"data, {node.samples} samples instead of {client.samples}"
        self._refuse(node.id, f"client {client.index} has another {what}")
        del self.nodes[client.index]
        return False

    def converse(self, kind: str, clients: Sequence[Client], compose: Compose) -> Iterator[tuple[Client, Heard]]:
        """Send each client the letter that `compose` writes for it, and yield what came of that.

        The answers come in the order of `clients`. A client that has not answered after the settings' `round_timeout`
        is dropped, and owes an answer from then on.
        """

        def send(client: Client, left: float) -> str | None:
            node = self.nodes.get(client.index)
            return None if node is None else self._post.send(kind, compose(client), node.id, left)

        conversation = Conversation(
            clients,
            send,
            self._post,
            window=self._window(),
            seconds=self._settings.round_timeout,
            on_unanswered=lambda messages: self._owed.update(messages),
        )
        yield from conversation.answers()

    def _window(self) -> int:
        """Return how many messages may be under way at one time."""
        if self._settings.in_flight:
            return self._settings.in_flight
        return 2 * (os.cpu_count() or 1) if self._post.simulated else self._clients

    def _meet(self, node: int, message: Message) -> None:
        heard = read(message)
        try:
            if heard.letter is None:
                raise InputError(heard.problem)
            client, samples, digest = wire.read_hello(heard.letter)
            if client >= self._clients:
                raise InputError(f"it is partition {client}; there are {self._clients}")
            if client in self.nodes:
                raise InputError(f"it is partition {client}, which another node is already")
            if self._keys is not None:
                key = self._post.key_of(node)
                if key is None:
                    return  # it is asked again
                if key != self._keys[client]:
                    raise InputError(f"it says that it is partition {client}, but has not the key of that client")
        except InputError as error:
            self._refuse(node, str(error))
            return
        self.nodes[client] = Node(node, client, samples, digest)
        self._say(f"client {client} is here, with {samples} samples")

    def _refuse(self, node: int, why: str) -> None:
        """Say why a node can't take part; it is asked again a few times."""
        self._refused[node] = self._refused.get(node, 0) + 1
        self._say(f"node {node} can't take part: {why}")
