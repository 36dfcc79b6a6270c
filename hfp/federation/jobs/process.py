"""Starts a worker process, speaks with it, and ends it. Torch is not imported."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

from hfp.federation.letter import Letter

PATIENCE = 5.0
"""Seconds that a process may take to end after it has closed its connection."""

_PROGRAM = (
    "import sys; sys.path[:] = {path!r}; from hfp.federation.jobs.worker import serve; serve({connection}, {data})"
)


@dataclass(frozen=True)
class Message:
    """What passes between a run and its workers: plain values, and a letter where there is one."""

    fields: dict[str, Any]
    letter: Letter = field(default_factory=lambda: Letter(""))


def send(connection: Connection, message: Message) -> None:
    """Send a message, as three strings of bytes.

    Raises:
        OSError: the other end is gone.
    """
    for part in (json.dumps(message.fields).encode(), message.letter.header.encode(), message.letter.body):
        connection.send_bytes(part)


def receive(connection: Connection) -> Message:
    """Receive a message.

    Raises:
        EOFError, OSError: the other end is gone.
    """
    fields, header, body = (connection.recv_bytes() for _ in range(3))
    return Message(json.loads(fields), Letter(header.decode(), body))


class WorkerProcess:
    """A process with `hfp.federation.jobs.worker` in it. It ends when this process does, however that comes.

    It is in a session of its own, so that Ctrl-C in a terminal reaches the run alone, which then ends it. What it
    prints goes to standard error.

    Args:
        data: the descriptor of a file that the process inherits.
    """

    def __init__(self, data: int) -> None:
        here, there = socket.socketpair()
        with there:
            self.connection = Connection(here.detach())
            program = _PROGRAM.format(path=sys.path, connection=there.fileno(), data=data)
            self._process = subprocess.Popen(
                [sys.executable, "-c", program],
                stdin=subprocess.DEVNULL,
                stdout=2,
                pass_fds=(there.fileno(), data),
                start_new_session=True,
            )

    @property
    def number(self) -> int:
        """The number by which the system knows the process."""
        return self._process.pid

    def send(self, message: Message) -> None:
        """Send a message. That the process has died shows when the next one is received."""
        with suppress(OSError):
            send(self.connection, message)

    def receive(self) -> Message | None:
        """Receive a message, or None where the process has died."""
        with suppress(OSError, EOFError):
            return receive(self.connection)
        return None

    def end(self) -> None:
        """End the process, whatever it does."""
        self.connection.close()
        self._process.kill()
        self._process.wait()

    def how_it_died(self) -> str:
        """Say, in a phrase, how a process ended whose messages have ended."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(PATIENCE)
        self.end()
        return ending(self._process.returncode)


def ending(status: int) -> str:
    """Say how a process ended, from its status; one below 0 is the number of a signal."""
    if status >= 0:
        return f"its process ended with status {status}"
    hint = "; if memory ran out, take fewer --jobs" if -status == signal.SIGKILL else ""
    return f"its process was killed by {signal.Signals(-status).name}{hint}"
