"""One client's part in a round: its task goes out, it trains, its reply comes back; every byte is counted."""

from __future__ import annotations

import dataclasses

from hfp.costs import MacCounter
from hfp.federation import Federation
from hfp.memory import MemoryCounter
from hfp.methods import Client, Local, ServerState, Task, Update
from hfp.payload import layout, pack, unpack
from hfp.reconstruct import Plan
from hfp.records import DROPPED, ClientRecord


class Exchange:
    """Runs clients in this process; what passes between them and the server does so as the bytes of the wire."""

    def __init__(self, federation: Federation) -> None:
        self._federation = federation
        self._count = MacCounter(federation.setting.example)
        self._memory = MemoryCounter(federation.setting.example)
        self._plans: dict[int, tuple[int, str, Plan]] = {}

    def run(self, state: ServerState, client: Client) -> tuple[Update, ClientRecord]:
        """Have a client do its task.

        Raises:
            InputError: training diverged.
        """
        federation = self._federation
        task = self._task(state, client)
        down = pack(task.tensors)
        received = dataclasses.replace(task, tensors=unpack(down, layout(task.tensors)))
        reply = federation.method.train(self._local(state, client), received)
        up = pack(reply.tensors)
        reply = dataclasses.replace(reply, tensors=unpack(up, layout(reply.tensors)))
        seconds = client.device.seconds(len(down), reply.training_macs, len(up))
        record = ClientRecord(
            client=client.index,
            ratio=client.ratio,
            samples=client.samples,
            steps=reply.steps,
            loss=reply.loss,
            bytes_down=len(down),
            bytes_up=len(up),
            parameters=reply.parameters,
            forward_macs=reply.forward_macs,
            training_macs=reply.training_macs,
            memory=reply.memory,
            device=client.device.name,
            seconds_down=seconds.download,
            seconds_training=seconds.compute,
            seconds_up=seconds.upload,
        )
        return Update(client, task, reply, federation.training.step_size, seconds), record

    def lose(self, state: ServerState, client: Client) -> ClientRecord:
        """Send a client its task and never hear of it."""
        down = len(pack(self._task(state, client).tensors))
        return ClientRecord(
            client=client.index,
            ratio=client.ratio,
            samples=client.samples,
            bytes_down=down,
            device=client.device.name,
            seconds_down=client.device.seconds(down, 0, 0).download,
            status=DROPPED,
        )

    def _task(self, state: ServerState, client: Client) -> Task:
        method, setting = self._federation.method, self._federation.setting
        return method.send(setting, state, client, self._plan(state, client))

    def _plan(self, state: ServerState, client: Client) -> Plan:
        """The client's plan of an earlier round while it is to stay, else a new one."""
        method, every = self._federation.method, self._federation.experiment.replan
        phase = method.phase(state)
        if client.index in self._plans:
            made, in_phase, plan = self._plans[client.index]
            if in_phase == phase and (every == 0 or state.round - made < every):
                return plan
        plan = method.plan(self._federation.setting, state, client)
        self._plans[client.index] = state.round, phase, plan
        return plan

    def _local(self, state: ServerState, client: Client) -> Local:
        federation = self._federation
        return Local(
            client=client,
            round=state.round,
            model=federation.model,
            groups=federation.setting.groups,
            data=federation.shards[client.index],
            training=federation.training,
            count=self._count,
            memory=self._memory,
            seed=federation.experiment.seed,
            device=federation.device,
        )
