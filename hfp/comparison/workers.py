"""Shares work out to processes. One that dies loses only its present task, and none outlives this process."""

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

from hfp.federation.jobs.process import ending

Work = Callable[[Any, Callable[[], None]], Any]
"""Does one task, and calls the function that it is given after each step of it."""

_STEP, _DONE = "step", "done"


@dataclass(frozen=True)
class Lost:
    """What came of a task whose process died, with the reason."""

    reason: str


def shared_out(
    work: Work, tasks: Sequence[Any], processes: int, on_step: Callable[[], None]
) -> Generator[tuple[int, Any | Lost], None, None]:
    """Do tasks in new processes, and yield each result with its task's number as soon as the task ends.

    A process that dies is replaced, and its task yields `Lost`. When the iterator is closed or fails, all processes are
    ended. When this process dies, they end by themselves.

    Args:
        work: a function of a module, which takes and returns values that can be pickled.
        tasks: what `work` is called with.
        processes: how many processes work at once.
        on_step: is called after each step of any task.
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
    """A process and its present task."""

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
            return Lost(ending(self._process.exitcode or 0))

    def end(self) -> None:
        self.connection.close()
        self._process.kill()
        self._process.join()


@contextmanager
def _signals_ignored() -> Iterator[None]:
    """Let processes that are started inside ignore interruptions, which are this process's to handle."""
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
    """Do tasks, in a new process, until there are no more."""
    os.dup2(2, 1)  # standard output is the starting process's own, for the document of --json
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
