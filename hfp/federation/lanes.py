"""Trains several clients at once on one GPU, because a small network alone leaves most of it idle."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

from hfp.errors import InputError
from hfp.federation.client_runner import Clients
from hfp.federation.setup import Federation
from hfp.methods import Client, Reply, Task
from hfp.training.local_step import LocalData
from hfp.training.shells import Replay

Write = Callable[[Client], Task]


class Turns:
    """Lets one thread work at a time. A thread that waits for its work on the GPU lets the others go on meanwhile.

    So no two threads ever use the same Python objects, generators or flags at once, and a client's random numbers are
    drawn as if it ran alone.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Take this thread's turn while inside."""
        with self._lock:
            yield

    @contextmanager
    def passed(self) -> Iterator[None]:
        """Give the turn to other threads while inside."""
        self._lock.release()
        try:
            yield
        finally:
            self._lock.acquire()


class Stream:
    """A CUDA stream and how threads wait for it. On the processor there is nothing to wait for."""

    def __init__(self, device: torch.device, turns: Turns) -> None:
        self._device, self._turns = device, turns
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def used(self) -> AbstractContextManager[Any]:
        """Send what this thread begins to this stream while inside."""
        if self._stream is None:
            return nullcontext()
        return torch.cuda.stream(self._stream)

    def follow(self, other: torch.cuda.Stream | None) -> None:
        """Let work that begins here from now on wait for what `other` has been given so far."""
        if self._stream is not None and other is not None:
            self._stream.wait_stream(other)

    def wait(self) -> None:
        """Wait until the work in this stream is done, and let other threads go on meanwhile."""
        if self._stream is None:
            with self._turns.passed():
                return
        done = torch.cuda.Event()
        done.record(self._stream)
        with self._turns.passed():
            done.synchronize()

    def hand_over(self, reply: Reply, to: torch.cuda.Stream | None) -> None:
        """Let another stream use a reply's tensors, whose memory is not used again before it is done with them."""
        if self._stream is not None and to is not None:
            to.wait_stream(self._stream)
            for tensor in reply.tensors.values():
                if tensor.is_cuda:
                    tensor.record_stream(to)


class Lanes:
    """Runs clients in several lanes, each of which has a stream of its own. Replies come in the clients' order.

    Client `i` of a round always runs in lane `i` modulo the number of lanes. Every lane has models and captured steps
    of its own, so memory grows with the lanes. What a client computes does not depend on who runs beside it.
    """

    def __init__(
        self, federation: Federation, count: int, *, replay: bool, shards: dict[int, LocalData] | None = None
    ) -> None:
        self._turns, device, said = Turns(), federation.device, set[str]()
        self._device = device
        self._streams = [Stream(device, self._turns) for _ in range(count)]
        shards = {} if shards is None else shards
        self._clients = [
            Clients(federation, Replay(device, said) if replay else None, stream.wait, shards)
            for stream in self._streams
        ]

    @classmethod
    def of(cls, federation: Federation, shards: dict[int, LocalData]) -> Lanes:
        """Make as many lanes as the experiment allows clients to train at once."""
        experiment = federation.experiment
        return cls(federation, experiment.clients_in_flight, replay=experiment.cuda_graphs, shards=shards)

    def train(
        self, round: int, clients: Sequence[Client], write: Write
    ) -> Iterator[tuple[Client, Task, Reply | InputError]]:
        """Yield each client's task and reply, or the error that its training ended with, in the order of `clients`."""
        count, server = len(self._streams), self._current()
        waiting = deque(enumerate(clients))
        begun: deque[tuple[int, Client, Task, Future[Reply]]] = deque()
        with ThreadPoolExecutor(count) as pool, self._turns.taken():
            try:
                while waiting or begun:
                    while waiting and len(begun) < count:
                        place, client = waiting.popleft()
                        task = write(client)
                        job = pool.submit(self._one, place % count, server, round, client, task)
                        begun.append((place % count, client, task, job))
                    lane, client, task, job = begun.popleft()
                    with self._turns.passed():
                        reply = _result(job)
                    if not isinstance(reply, InputError):
                        self._streams[lane].hand_over(reply, server)
                    yield client, task, reply
            finally:
                for *_, job in begun:
                    job.cancel()
                with self._turns.passed():
                    pool.shutdown()

    def _one(self, lane: int, server: torch.cuda.Stream | None, round: int, client: Client, task: Task) -> Reply:
        stream = self._streams[lane]
        with self._turns.taken(), stream.used():
            stream.follow(server)
            return self._clients[lane].train(round, client, task)

    def _current(self) -> torch.cuda.Stream | None:
        return torch.cuda.current_stream(self._device) if self._device.type == "cuda" else None


def _result(job: Future[Reply]) -> Reply | InputError:
    try:
        return job.result()
    except InputError as error:
        return error
