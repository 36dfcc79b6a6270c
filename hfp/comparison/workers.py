"""Work shared out to processes: one that dies costs what it was at, and none outlives this process."""

from __future__ import annotations

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from typing import Any

Work = Callable[[Any, Callable[[], None]], Any]
"""Does one task, and calls the function that it is given whenever it has come on a bit."""

_STEP, _DONE = "step", "done"


@dataclass(frozen=True)
class Lost:
    """A task whose process died at it, and how."""

    reason: str


def shared_out(
    work: Work, tasks: Sequence[Any], processes: int, on_step: Callable[[], None]
) -> Generator[tuple[int, Any | Lost], None, None]:
    """Do tasks in new processes, and yield what comes of them, each with its task's number, as they end.

    `work` is a function of a module, and what it takes and returns can be pickled. Processes start with nothing but
    this module's imports. A process that dies is replaced. When the iterator is closed or fails, all are ended; when
    this process dies, they end by themselves.
    """
    waiting = deque(range(min(processes, len(tasks)), len(tasks)))
    crew: dict[Connection, _Worker] = {}
    try:
        for number in range(min(processes, len(tasks))):
            worker = _Worker(work, number, tasks[number])
            crew[worker.connection] = worker
        while crew:
            for connection in wait(list(crew)):
                worker = crew[connection]  # type: ignore[index]
                message = worker.heard()
                if message == (_STEP, None):
                    on_step()
                    continue
                number, next_one = worker.number, waiting.popleft() if waiting else None
                if next_one is None or isinstance(message, Lost):
                    del crew[worker.connection]
                    worker.end()
                if next_one is not None and isinstance(message, Lost):
                    worker = _Worker(work, next_one, tasks[next_one])
                    crew[worker.connection] = worker
                elif next_one is not None:
                    worker.give(next_one, tasks[next_one])
                yield number, message if isinstance(message, Lost) else message[1]
    finally:
        for worker in crew.values():
            worker.end()


class _Worker:
    """A process and the task that it is at."""

    def __init__(self, work: Work, number: int, task: Any) -> None:
        context = get_context("spawn")
        self.connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(work, theirs), daemon=True)
        with _signals_ignored():
            self._process.start()
        theirs.close()  # so that the process holds the only one, which closes when it dies
        self.give(number, task)

    def give(self, number: int, task: Any) -> None:
        self.number = number
        with suppress(OSError):  # it has died, which the next attempt to hear from it finds
            self.connection.send(task)

    def heard(self) -> tuple[str, Any] | Lost:
        try:
            return self.connection.recv()
        except (EOFError, OSError):
            self._process.join()
            return Lost(_reason(self._process.exitcode or 0))

    def end(self) -> None:
        self.connection.close()
        self._process.kill()
        self._process.join()


def _reason(status: int) -> str:
    if status >= 0:
        return f"its process ended with status {status}"
    hint = "; if memory ran out, take fewer --jobs" if -status == signal.SIGKILL else ""
    return f"its process was killed by {signal.Signals(-status).name}{hint}"


@contextmanager
def _signals_ignored() -> Iterator[None]:
    """Processes started inside leave interruptions to this one, from their first moment on."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    handlers = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _serve(work: Work, connection: Connection) -> None:
    """In a new process: do tasks until there are no more."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        while True:
            task = connection.recv()
            connection.send((_DONE, work(task, lambda: connection.send((_STEP, None)))))
    except (EOFError, OSError):
        return  # the other end is gone, and nobody hears what is left to say


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
