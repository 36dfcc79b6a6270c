"""Messages to nodes and what comes back, over a Flower grid whose transport may fail."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from flwr.app import Message, MessageType
from flwr.serverapp import Grid

from hfp.errors import InputError, described, printable
from hfp.federation import wire
from hfp.federation.letter import Letter
from hfp.federation.records import FAILED, IN_TIME, REFUSED
from hfp.flower.letter import from_records, to_records

SHORTEST, LONGEST = 0.02, 0.5  # seconds between two looks for messages: the pause doubles while none come
PATIENCE = 5.0  # seconds that a message outlives its round, so that the server still hears of its end
TRIES = 3  # attempts at sending one message
KINDS = {"hello": MessageType.QUERY, "train": MessageType.TRAIN, "statistics": MessageType.EVALUATE}

Say = Callable[[str], None]


@dataclass(frozen=True)
class Heard:
    """What came of one message: a letter, or a status of `hfp.federation.records` and the reason."""

    letter: Letter | None = None
    status: str = IN_TIME
    problem: str = ""


class Post:
    """Sends letters to nodes and collects the replies. Errors of the transport are told to `say` and survived."""

    def __init__(self, grid: Grid, say: Say) -> None:
        self._grid, self._say = grid, say

    def present(self) -> set[int] | None:
        """Return the ids of the nodes that the grid knows now; None where it can't be asked."""
        try:
            return set(self._grid.get_node_ids())
        except Exception as error:  # the transport's own, of several libraries
            self._say(f"the nodes could not be listed: {described(error)}")
            return None

    def key_of(self, node: int) -> bytes | None:
        """Return the public key that the SuperLink has registered a node with; None where it can't be asked now."""
        try:
            return next(
                (bytes(found.public_key).strip() for found in self._grid.get_nodes() if found.node_id == node), b""
            )
        except Exception as error:  # as above
            self._say(f"the nodes' keys could not be read: {described(error)}")
            return None

    @property
    def simulated(self) -> bool:
        """Whether the grid keeps all messages in this process."""
        return type(self._grid).__name__ == "InMemoryGrid"

    def send(self, kind: str, letter: Letter, node: int, seconds: float) -> str | None:
        """Send one message that a node may answer for so many seconds.

        Returns:
            The message's id, or None where Flower did not accept it in `TRIES` attempts.
        """
        for attempt in range(TRIES):
            message = Message(to_records(letter), node, KINDS[kind], ttl=seconds + PATIENCE)
            try:
                accepted = [identity for identity in self._grid.push_messages([message]) if identity]
            except Exception as error:  # as above
                self._say(f"a message could not be sent: {described(error)}")
                accepted = []
            if accepted:
                return str(accepted[0])
            time.sleep(LONGEST * attempt)
        return None

    def replies(self, identities: Iterable[str]) -> Sequence[Message]:
        """Fetch the replies that have come to messages of these ids, in the grid's order."""
        wanted = list(identities)
        if not wanted:
            return []
        try:
            return list(self._grid.pull_messages(wanted))
        except Exception as error:  # as above; the messages are asked for again
            self._say(f"no messages could be read: {described(error)}")
            return []


def read(message: Message) -> Heard:
    """Read the letter in a reply, or say why there is none."""
    if message.has_error():
        reason = printable(" ".join(str(message.error.reason).split())[: wire.MOST_WORDS])
        return Heard(status=FAILED, problem=f"{reason} (code {message.error.code})")
    try:
        letter = from_records(message.content)
    except InputError as error:
        return Heard(status=REFUSED, problem=str(error))
    failure = wire.failure_in(letter)
    if failure and failure[0] == wire.FAILED:
        return Heard(status=FAILED, problem=failure[1])
    return Heard(letter)
