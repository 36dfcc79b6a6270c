"""What a worker process does: it sets a federation up as it is told, and answers requests until its parent ends."""

from __future__ import annotations

import dataclasses
import os
import threading
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import TYPE_CHECKING

from hfp.errors import InputError
from hfp.federation.jobs.process import Message, receive, send

if TYPE_CHECKING:
    from hfp.federation.client_runner import Clients
    from hfp.federation.letter import Letter
    from hfp.federation.setup import Federation
    from hfp.methods import Client

TRAIN, STATISTICS = "train", "statistics"
"""Kinds of requests."""
READY, DONE, FAILED, ERROR = "ready", "done", "failed", "error"
"""Kinds of answers: the last two say that the client failed, and that the program is at fault."""


def serve(connection: int, data: int) -> None:
    """Answer requests.

    Args:
        connection: the descriptor of the socket to the parent.
        data: the descriptor of the file with the images.
    """
    parent = Connection(connection)
    inbox: SimpleQueue[Message] = SimpleQueue()
    threading.Thread(target=_read, args=(parent, inbox), daemon=True).start()
    instructions = inbox.get()
    desk, answer = _ready(instructions, data)
    _send(parent, answer)
    while desk is not None:
        _send(parent, _safely(desk.answer, inbox.get()))


def _read(parent: Connection, inbox: SimpleQueue[Message]) -> None:
    """Take in what the parent sends, whatever is done meanwhile, and end the process when the parent has ended."""
    try:
        while True:
            inbox.put(receive(parent))
    except (EOFError, OSError):
        os._exit(0)


def _send(parent: Connection, message: Message) -> None:
    try:
        send(parent, message)
    except OSError:
        os._exit(0)


def _ready(instructions: Message, data: int) -> tuple[Desk | None, Message]:
    try:
        desk = Desk(instructions, data)
    except Exception as error:
        if not isinstance(error, InputError):
            traceback.print_exc()
        return None, _problem(error)
    return desk, Message({"kind": READY, "digest": desk.digest})


def _safely(do: Callable[[Message], Message], request: Message) -> Message:
    try:
        return do(request)
    except InputError as error:
        return _problem(error)
    except Exception:
        return Message({"kind": ERROR, "problem": traceback.format_exc()})


def _problem(error: Exception) -> Message:
    named = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
    return Message({"kind": FAILED, "problem": named + " ".join(str(error).split())})


class Desk:
    """Answers the requests of one run."""

    def __init__(self, instructions: Message, data: int) -> None:
        """Set the federation up; torch is only loaded here, so that the parent's end is noticed before.

        Raises:
            InputError: it can't be set up.
        """
        from hfp.federation import wire
        from hfp.federation.client_runner import Clients
        from hfp.federation.jobs.description import set_up_as
        from hfp.federation.jobs.memory import mapped

        tensors = mapped(data, instructions.fields["places"]) if instructions.fields["places"] else {}
        self._federation: Federation = set_up_as(instructions.fields, tensors)
        self._clients: Clients = Clients(self._federation)
        self.digest = wire.digest(self._federation.context, self._federation.model.state_dict())

    def answer(self, request: Message) -> Message:
        """Do a client's task, or measure its statistics.

        Raises:
            InputError: training diverged.
        """
        client = self._federation.context.clients[request.fields["client"]]
        if request.fields["kind"] == TRAIN:
            return self._train(client, request.letter)
        return self._statistics(client, request.letter)

    def _train(self, client: Client, letter: Letter) -> Message:
        from hfp.federation import wire

        round, ratio, task = wire.read_task(self._federation.context, letter, client.index, {})
        reply = self._clients.train(round, dataclasses.replace(client, ratio=ratio), task)
        figures = {entry.name: getattr(reply, entry.name) for entry in dataclasses.fields(reply)}
        tensors = figures.pop("tensors")
        return Message({"kind": DONE, "figures": figures}, wire.write_state(DONE, tensors, {}))

    def _statistics(self, client: Client, letter: Letter) -> Message:
        from hfp.federation import wire

        found = self._clients.statistics(client, wire.read_own_state(STATISTICS, letter))
        return Message({"kind": DONE}, wire.write_state(DONE, found, {}))
