"""The server's side of a round, which writes tasks for clients and turns their answers into updates and records."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from hfp.costs.memory import PeakBytesCounter
from hfp.costs.payload import packed_bytes
from hfp.federation.fleet import TaskResult
from hfp.federation.records import DROPPED, FAILED, MEGABYTE, ClientRecord
from hfp.federation.setup import Federation
from hfp.methods import Client, ServerState, Task, Update
from hfp.reconstruct import Plan, compact_model

Plans = Mapping[int, tuple[int, str, Plan]]


class Exchange:
    """Writes tasks and reads answers, and remembers plans with the round and phase that they are from.

    A plan is remembered while it may be used again, so that memory does not grow with the clients that were ever asked.
    """

    def __init__(self, federation: Federation, plans: Plans | None = None) -> None:
        self._federation = federation
        self._plans = dict(plans or {})
        self._round = -1
        self._count_peak_bytes = PeakBytesCounter(federation.context.example)

    @property
    def plans(self) -> Plans:
        """Client's index to the round and phase in which its plan was made, and the plan, where it may be used again.

        Those of the last round are among them.
        """
        return dict(sorted(self._plans.items()))

    def task(self, state: ServerState, client: Client) -> Task:
        """Write the client's task in the coming round, which is the same each time."""
        method, context = self._federation.method, self._federation.context
        return method.send(context, state, client, self._plan(state, client))

    def update(self, round: int, result: TaskResult) -> Update | None:
        """Turn an answer in a round into an update, or return None when there is no reply in it."""
        reply = result.reply
        if reply is None:
            return None
        seconds = result.client.device.seconds(result.bytes_down, reply.training_macs, result.bytes_up)
        step_size = self._federation.training_in(round).step_size
        return Update(result.client, result.task, reply, step_size, seconds)

    def record(self, result: TaskResult) -> ClientRecord:
        """Record an answer's figures, which are those of the download alone when there is no reply."""
        client, reply = result.client, result.reply
        seconds = client.device.seconds(result.bytes_down, reply.training_macs if reply else 0, result.bytes_up)
        record = ClientRecord(
            client=client.index,
            ratio=client.ratio if self._federation.method.uses_ratios else result.task.plan.ratio,
            samples=client.samples,
            bytes_down=result.bytes_down,
            bytes_up=result.bytes_up,
            device=client.device.name,
            seconds_down=seconds.download,
            status=result.status,
            problem=result.problem,
        )
        if reply is None:
            return record
        return dataclasses.replace(
            record,
            steps=reply.steps,
            loss=reply.loss,
            parameters=reply.parameters,
            forward_macs=reply.forward_macs,
            training_macs=reply.training_macs,
            peak_bytes=reply.peak_bytes,
            seconds_training=seconds.compute,
            seconds_up=seconds.upload,
        )

    def lose(self, state: ServerState, client: Client, problem: str) -> TaskResult:
        """Return the result of a client that never answers, or of one that isn't asked because of a `problem`."""
        task = self.task(state, client)
        if problem:
            return TaskResult(client, task, bytes_down=0, status=FAILED, problem=problem)
        return TaskResult(client, task, packed_bytes(task.tensors), status=DROPPED)

    def misfit(self, state: ServerState, client: Client) -> str:
        """Why a client's device has too little memory for its submodel, in a sentence; empty where it has enough.

        Ratios fit the devices from the start, but not every method goes by ratios.
        """
        most, context = client.device.memory, self._federation.context
        if most is None:
            return ""
        method, training = self._federation.method, self._federation.training
        compact = compact_model(context.model, context.groups.index_map(self._plan(state, client)))
        submodel = method.trained_model(compact, client.ratio)
        needed = self._count_peak_bytes(submodel, training.batch_size) + method.extra_bytes(submodel)
        if needed <= most:
            return ""
        return (
            f"training the submodel of client {client.index} keeps {needed / MEGABYTE:.2f} MB in memory, and its "
            f"device has {most / MEGABYTE:.2f} MB"
        )

    def _plan(self, state: ServerState, client: Client) -> Plan:
        """Return the client's plan of an earlier round while that is to stay, else a new one."""
        method = self._federation.method
        phase = method.phase(state)
        if state.round != self._round:
            self._round = state.round
            self._plans = {
                index: (made, in_phase, plan)
                for index, (made, in_phase, plan) in self._plans.items()
                if in_phase == phase and self._stays(made, state.round, index)
            }
        if client.index not in self._plans:
            self._plans[client.index] = state.round, phase, method.plan(self._federation.context, state, client)
        return self._plans[client.index][2]

    def _stays(self, made: int, round: int, client: int) -> bool:
        """Whether a plan of an earlier round still serves its client, which may be about to get a larger submodel."""
        every, own = self._federation.experiment.replan, self._federation.context.clients[client]
        same_size = self._federation.client_in(made, own) == self._federation.client_in(round, own)
        return same_size and (every == 0 or round - made < every)
