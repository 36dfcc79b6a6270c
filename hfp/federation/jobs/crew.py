"""Keeps worker processes busy with requests, and replaces those that die."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import TypeVar

from hfp.errors import InputError
from hfp.federation.jobs.process import Message, WorkerProcess

TRIES = 2
"""A request counts as lost when it has been given to this many processes."""
AHEAD = 2
"""This many answers per process may wait for one that comes before them."""

Item = TypeVar("Item")


@dataclass(frozen=True)
class Answer:
    """What came of a request.

    Args:
        message: the answer, None where both processes died that worked on the request.
        problem: how processes died, empty where none did.
    """

    message: Message | None
    problem: str = ""


@dataclass
class _Request:
    place: int
    message: Message
    deaths: int = 0
    problem: str = ""


class _Worker:
    """A process, and the request that it works on, None while it has none."""

    def __init__(self, process: WorkerProcess, instructions: Message) -> None:
        self.process, self.ready = process, False
        self.request: _Request | None = None
        process.send(instructions)

    def give(self, request: _Request) -> None:
        self.request = request
        self.process.send(request.message)


class Crew:
    """Worker processes that all can answer every request.

    Args:
        count: how many processes there are.
        start: starts a process.
        instructions: what a new process is told first; it answers when it is ready.
        check_ready: is given that answer, and raises where the process can't be used.
    """

    def __init__(
        self,
        count: int,
        start: Callable[[], WorkerProcess],
        instructions: Message,
        check_ready: Callable[[Message], None],
    ) -> None:
        self._count, self._start, self._instructions, self._check_ready = count, start, instructions, check_ready
        self._workers: list[_Worker] = []

    def begin(self) -> None:
        """Start the processes that are missing; they get ready while this one goes on."""
        while len(self._workers) < self._count:
            self._workers.append(_Worker(self._start(), self._instructions))

    def end(self) -> None:
        """End all processes."""
        while self._workers:
            self._workers.pop().process.end()

    def answers(self, items: Sequence[Item], write: Callable[[Item], Message]) -> Iterator[tuple[Item, Answer]]:
        """Have every item's request answered, and yield the items with their answers in their order.

        A request is written when a process is free for it. At most a few answers wait for an earlier one, so that
        memory does not grow with the number of items. A request whose process dies is given to another process once.

        Raises:
            InputError: a process can't get ready.
        """
        self.begin()
        waiting, retried = deque(enumerate(items)), deque[_Request]()
        come: dict[int, Answer] = {}
        turn = 0
        try:
            while turn < len(items):
                for worker in self._workers:
                    near = waiting and waiting[0][0] < turn + (1 + AHEAD) * self._count
                    if worker.ready and worker.request is None and (retried or near):
                        worker.give(retried.popleft() if retried else _written(waiting.popleft(), write))
                if turn in come:
                    yield items[turn], come.pop(turn)
                    turn += 1
                else:
                    self._hear(come, retried)
        finally:
            if any(worker.request for worker in self._workers):  # whoever wanted the answers has gone
                self.end()

    def _hear(self, come: dict[int, Answer], retried: deque[_Request]) -> None:
        """Wait until some process says something or dies."""
        heard = wait([worker.process.connection for worker in self._workers])
        for worker in [worker for worker in self._workers if worker.process.connection in heard]:
            message = worker.process.receive()
            if message is None:
                self._replace(worker, come, retried)
            elif not worker.ready:
                self._check_ready(message)
                worker.ready = True
            elif worker.request is not None:
                come[worker.request.place] = Answer(message, worker.request.problem)
                worker.request = None

    def _replace(self, worker: _Worker, come: dict[int, Answer], retried: deque[_Request]) -> None:
        """Start another process in the place of one that has died, and retry its request."""
        problem, request = worker.process.how_it_died(), worker.request
        self._workers.remove(worker)
        if not worker.ready:
            raise InputError(f"a worker process could not be set up: {problem}")
        warnings.warn(f"another worker process takes the place of one that died: {problem}", stacklevel=2)
        if request is not None:
            request.deaths, request.problem = request.deaths + 1, problem
            if request.deaths < TRIES:
                retried.append(request)
            else:
                come[request.place] = Answer(None, problem)
        self.begin()


def _written(item: tuple[int, Item], write: Callable[[Item], Message]) -> _Request:
    place, what = item
    return _Request(place, write(what))
