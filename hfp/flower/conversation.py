"""One message to each of several clients, and their replies in the clients' order, within a limit of time."""

from __future__ import annotations

import os
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence

from hfp.federation.letter import Letter
from hfp.federation.records import DROPPED
from hfp.flower.post import LONGEST, SHORTEST, Heard, Post, read
from hfp.methods import Client

Send = Callable[[Client, float], str | None]
"""Sends a client its message, which may be answered for so many seconds; returns the message's id, None if not sent."""


class Conversation:
    """Sends every client its message, a few at a time, and yields what came of each in the clients' order.

    Replies that come before their client's turn wait in a file, so that memory doesn't grow with the number of clients.

    Args:
        clients: whom to ask, in the order of the answers.
        send: sends one client its message.
        post: what the replies come through.
        window: how many messages may be unanswered at one time.
        seconds: how long to wait for all replies together.
        on_unanswered: is told at the end of the time which messages have no reply, as message id to client.
    """

    def __init__(
        self,
        clients: Sequence[Client],
        send: Send,
        post: Post,
        *,
        window: int,
        seconds: float,
        on_unanswered: Callable[[Mapping[str, int]], None],
    ) -> None:
        self._clients, self._send, self._post, self._window = clients, send, post, window
        self._on_unanswered = on_unanswered
        self._until = time.monotonic() + seconds
        self._waiting = deque(clients)
        self._unanswered: dict[str, int] = {}
        self._spool = _Spool()
        self._pause = SHORTEST

    def answers(self) -> Iterator[tuple[Client, Heard]]:
        """Yield every client with what came of its message."""
        with self._spool:
            for client in self._clients:
                while client.index not in self._spool:
                    self._go_on(client)
                yield client, self._spool.take(client.index)

    def _go_on(self, client: Client) -> None:
        """Send what may be sent, read what has come, and rest where `client` must still be waited for."""
        left = self._until - time.monotonic()
        self._fill_window(left)
        some_came = self._receive()
        if left <= 0:
            self._give_up()
        elif some_came:
            self._pause = SHORTEST
        elif client.index not in self._spool:
            time.sleep(self._pause)
            self._pause = min(2 * self._pause, LONGEST)

    def _fill_window(self, left: float) -> None:
        while self._waiting and left > 0 and len(self._unanswered) < self._window:
            client = self._waiting.popleft()
            identity = self._send(client, left)
            if identity is None:
                self._drop(client.index, "no message could be sent to its node")
            else:
                self._unanswered[identity] = client.index

    def _receive(self) -> bool:
        """Put the replies that have come into the spool, and return whether there were any."""
        messages = self._post.replies(self._unanswered)
        for message in messages:
            client = self._unanswered.pop(message.metadata.reply_to_message_id, None)
            if client is not None:
                self._spool.put(client, read(message))
        return bool(messages)

    def _give_up(self) -> None:
        self._on_unanswered(dict(self._unanswered))
        for index in self._unanswered.values():
            self._drop(index, "no answer when the round ended")
        for client in self._waiting:
            self._drop(
                client.index, "the round ended before its message could be sent; raise round-timeout or in-flight"
            )
        self._unanswered.clear()
        self._waiting.clear()

    def _drop(self, client: int, problem: str) -> None:
        self._spool.put(client, Heard(status=DROPPED, problem=problem))


class _Spool:
    """What came of messages to clients whose turn it is not yet.

    The bodies of letters are in one file without a name, which is gone with this process, however that ends.
    """

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115, `__exit__` closes it
        self._heard: dict[int, Heard] = {}
        self._places: dict[int, tuple[int, int]] = {}

    def __enter__(self) -> _Spool:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __contains__(self, client: int) -> bool:
        return client in self._heard

    def put(self, client: int, heard: Heard) -> None:
        if heard.letter is not None and heard.letter.body:
            if not self._places:
                self._file.truncate(0)
            start = self._file.seek(0, os.SEEK_END)
            self._places[client] = start, self._file.write(heard.letter.body)
            heard = Heard(Letter(heard.letter.header), heard.status, heard.problem)
        self._heard[client] = heard

    def take(self, client: int) -> Heard:
        heard, place = self._heard.pop(client), self._places.pop(client, None)
        if heard.letter is None or place is None:
            return heard
        start, length = place
        self._file.seek(start)
        letter = Letter(heard.letter.header, self._file.read(length))
        return Heard(letter, heard.status, heard.problem)
