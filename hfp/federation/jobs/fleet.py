"""Worker processes as a fleet: the clients of a round train side by side, and their replies come in order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from hfp.costs.payload import packed_bytes
from hfp.errors import InputError
from hfp.federation import wire
from hfp.federation.fleet import Fleet, InProcess, TaskResult
from hfp.federation.jobs import worker
from hfp.federation.jobs.check import check_jobs
from hfp.federation.jobs.crew import Answer, Crew
from hfp.federation.jobs.description import described
from hfp.federation.jobs.memory import written
from hfp.federation.jobs.process import Message, WorkerProcess
from hfp.federation.lanes import Write
from hfp.federation.records import FAILED
from hfp.federation.setup import Federation
from hfp.methods import Client, Reply, State, Task


@contextmanager
def fleet_of(federation: Federation, jobs: int) -> Iterator[Fleet]:
    """Make the fleet that has so many clients train at once: this process, or worker processes while inside.

    Workers compute with as many threads as this process does, so that the results of a run do not depend on `jobs`.

    Raises:
        InputError: `jobs` is below 1, or above 1 where the run is not on the processor or can't be sent to workers.
    """
    check_jobs(jobs, federation.device.type)
    if jobs == 1:
        yield InProcess(federation)
        return
    fleet = Jobs(federation, jobs)
    try:
        fleet.begin()
        yield fleet
    finally:
        fleet.end()


class Jobs:
    """A `hfp.federation.fleet.Fleet` of worker processes on this machine.

    Messages are counted as those that `InProcess` counts, whatever is sent to the workers.
    """

    home = torch.device("cpu")

    def __init__(self, federation: Federation, count: int) -> None:
        """Describe the federation for workers; none is started yet.

        Raises:
            InputError: something of it can't be sent to workers.
        """
        self._context = federation.context
        self._digest = wire.digest(self._context, federation.model.state_dict())
        description, tensors = described(federation)
        self._memory, places = written(tensors)
        instructions = Message({**description, "places": places})
        self._crew = Crew(count, lambda: WorkerProcess(self._memory.fileno()), instructions, self._check_ready)

    def begin(self) -> None:
        """Start the workers, which set themselves up while this process goes on."""
        self._crew.begin()

    def end(self) -> None:
        """End the workers."""
        self._crew.end()
        self._memory.close()

    def reachable(self, round: int, clients: Sequence[Client]) -> Sequence[Client]:
        """Return all of `clients`."""
        return clients

    def train(self, round: int, clients: Sequence[Client], write: Write) -> Iterator[TaskResult]:
        """Have every client do its task. A client whose training diverges, or ends two processes, has failed."""
        tasks: dict[int, Task] = {}

        def request(client: Client) -> Message:
            task = tasks[client.index] = write(client)
            letter = wire.write_task(self._context, round, client, task)
            return Message({"kind": worker.TRAIN, "client": client.index}, letter)

        for client, answer in self._crew.answers(clients, request):
            task, (message, problem) = tasks.pop(client.index), _opened(client, answer)
            down = packed_bytes(task.tensors)
            if message is None:
                yield TaskResult(client, task, down, status=FAILED, problem=problem)
            else:
                reply = Reply(wire.read_own_state(worker.DONE, message.letter), **message.fields["figures"])
                yield TaskResult(client, task, down, packed_bytes(reply.tensors), reply, problem=problem)

    def statistics(self, round: int, clients: Sequence[Client], weights: State) -> Iterator[tuple[Client, State | str]]:
        """Measure the statistics of several clients at once."""
        letter = wire.write_state(worker.STATISTICS, weights, {})

        def request(client: Client) -> Message:
            return Message({"kind": worker.STATISTICS, "client": client.index}, letter)

        for client, answer in self._crew.answers(clients, request):
            message, problem = _opened(client, answer)
            yield client, problem if message is None else wire.read_own_state(worker.DONE, message.letter)

    def _check_ready(self, message: Message) -> None:
        """Refuse a worker that could not set itself up as this process has.

        Raises:
            InputError: with the worker's reason.
        """
        if message.fields["kind"] == worker.FAILED:
            raise InputError(f"a worker process could not be set up: {message.fields['problem']}")
        if message.fields["digest"] != self._digest:
            raise InputError(
                "worker processes make another model than this one: give a model that is the same whenever it is made, "
                "or take 1 job"
            )


def _opened(client: Client, answer: Answer) -> tuple[Message | None, str]:
    """Return the message with what a client answers, None where it failed, and what is to be said of it."""
    message, died = answer.message, answer.problem
    if message is None:
        return None, died
    kind, problem = message.fields["kind"], message.fields.get("problem", "")
    if kind == worker.ERROR:
        raise RuntimeError(f"client {client.index} in a worker process: {problem}")
    if kind == worker.FAILED:
        return None, problem
    return message, f"{died}; the client was run again" if died else ""
