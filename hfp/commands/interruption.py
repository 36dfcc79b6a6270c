"""How Ctrl-C and a request to end (SIGTERM, SIGHUP) end a command: in one line, with what was done kept.

A command that is under way is asked to stop by `Interrupted`, so that it can keep what it has. While modules are
loaded, and from the second signal on, the process ends at once: files are written whole or not at all, and the last
checkpoint stands.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from types import FrameType

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class Interrupted(KeyboardInterrupt):
    """A signal asks the command to stop; `status` is the exit status that tells of it."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.status = status_of(number)


def status_of(number: int) -> int:
    """Return what a shell reports for a signal that ends a program: 130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP."""
    return 128 + number


def status(stop: KeyboardInterrupt) -> int:
    """Return the exit status of a command that was interrupted so."""
    return stop.status if isinstance(stop, Interrupted) else status_of(signal.SIGINT)


class Signals:
    """Handles the signals of one process that runs one command."""

    def __init__(self) -> None:
        self._gentle = False
        self.received: int | None = None

    def install(self) -> None:
        """Handle the signals from now on, but for those that whoever started the process had it ignore (nohup)."""
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._handle)

    def gently(self, command: Callable[[], int]) -> int:
        """Run a command that can stop when it is interrupted; returns its status."""
        self._gentle = True
        try:
            return command()
        except BaseException as error:
            number = self.received
            if number is None:
                raise
            if not isinstance(error, SystemExit):  # an interrupted import may raise anything
                _say("interrupted")
            return status_of(number)
        finally:
            self._gentle = False

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self._gentle and self.received is None:
            self.received = number
            raise Interrupted(number)
        _say("interrupted")
        os._exit(status_of(number))


def _say(what: str) -> None:
    words = [word for word in sys.argv[1:2] if not word.startswith("-")]
    os.write(2, f"{' '.join(['hfp', *words])}: {what}\n".encode())
