"""The clients' side of a round, which trains a task on a client's own data or measures statistics on it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from hfp.costs.macs import MacCounter
from hfp.costs.memory import PeakBytesCounter
from hfp.federation.setup import Federation
from hfp.methods import Client, ClientContext, Reply, State, Task
from hfp.reconstruct import IndexMap, compact_model
from hfp.seeds import seeded
from hfp.training.local_step import LocalData, on_device, statistics_of
from hfp.training.shells import Lease, Replay, Shells


class Clients:
    """Does the work of any number of a federation's clients, one at a time.

    Args:
        federation: what stays the same over the run.
        replay: keeps and replays local steps; by default they run one by one.
        wait: is called before a value is read from the device.
        shards: clients' data that is on the device already, shared with others who do the same work.
    """

    def __init__(
        self,
        federation: Federation,
        replay: Replay | None = None,
        wait: Callable[[], None] = lambda: None,
        shards: dict[int, LocalData] | None = None,
    ) -> None:
        self._federation = federation
        self._count = MacCounter(federation.context.example)
        self._count_peak_bytes = PeakBytesCounter(federation.context.example)
        self._model: nn.Module | None = None
        self._shards = {} if shards is None else shards
        device, training = federation.device, federation.training
        self._shells = Shells(federation.model, device, channels_last=training.channels_last, replay=replay, wait=wait)

    def train(self, round: int, client: Client, task: Task) -> Reply:
        """Do a task.

        Raises:
            InputError: training diverged.
        """
        with self._seeded("layers", client, round), self._shells.lent() as lease:
            reply = self._federation.method.train(self._local(round, client, lease), task)
            return dataclasses.replace(reply, tensors=_copied(reply.tensors))

    def statistics(self, client: Client, weights: State) -> dict[str, Tensor]:
        """Measure the global model's batch-norm statistics on the client's data."""
        if self._model is None:
            full = self._federation.model
            self._model = compact_model(full, IndexMap.identity(full), weights).to(self._federation.device)
        self._model.load_state_dict(dict(weights))
        with self._seeded("statistics", client):
            return statistics_of(self._model, self._data(client), self._federation.training)

    def _seeded(self, purpose: str, client: Client, *labels: int) -> AbstractContextManager[None]:
        """Seed layers that draw at random, such as dropout, so that they draw the same in every run of a seed."""
        federation = self._federation
        return seeded(federation.device, federation.experiment.seed, purpose, *labels, client.index)

    def _data(self, client: Client) -> LocalData:
        """Return the client's data, which stays on the device from its first use on."""
        if client.index not in self._shards:
            shard = self._federation.shards[client.index]
            self._shards[client.index] = on_device(shard, self._federation.device)
        return self._shards[client.index]

    def _local(self, round: int, client: Client, lease: Lease) -> ClientContext:
        federation = self._federation
        return ClientContext(
            client=client,
            round=round,
            model=federation.model,
            groups=federation.context.groups,
            data=self._data(client),
            training=federation.training_in(round),
            count=self._count,
            count_peak_bytes=self._count_peak_bytes,
            seed=federation.experiment.seed,
            device=federation.device,
            shells=lease,
        )


def _copied(tensors: State) -> dict[str, Tensor]:
    """Copy tensors in row-major order, because a reply is still needed when its model is the next client's."""
    return {name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
