"""A run's figures, as frozen values that turn into plain JSON."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from hfp.experiment import Experiment
from hfp.methods import State

MEGABYTE = 1e6


@dataclass(frozen=True)
class Cost:
    """What one round costs over all clients; `forward_macs` and `parameters` are one model's, for one image."""

    bytes_down: int
    bytes_up: int
    training_macs: int
    forward_macs: int
    parameters: int


@dataclass(frozen=True)
class ClientRecord:
    """One client in one round. MACs: `forward_macs` of one image, `training_macs` of all its steps (3 forwards)."""

    client: int
    ratio: float
    samples: int
    steps: int
    loss: float
    bytes_down: int
    bytes_up: int
    parameters: int
    forward_macs: int
    training_macs: int


@dataclass(frozen=True)
class RoundRecord:
    """One round. `accuracy` (percent) and `loss` are the global model's on the whole test set.

    `statistics` is what one re-estimation of batch-norm statistics moves, (bytes down, bytes up): the curve needs it at
    every round, a deployment only once, for its final model.
    """

    round: int
    phase: str
    accuracy: float
    loss: float
    clients: tuple[ClientRecord, ...]
    statistics: tuple[int, int]
    seconds: float

    @property
    def bytes_down(self) -> int:
        """Bytes of the submodels sent to clients."""
        return sum(client.bytes_down for client in self.clients)

    @property
    def bytes_up(self) -> int:
        """Bytes of the submodels sent back."""
        return sum(client.bytes_up for client in self.clients)

    @property
    def training_macs(self) -> int:
        """Multiply-accumulates of all clients' training steps."""
        return sum(client.training_macs for client in self.clients)

    @property
    def train_loss(self) -> float:
        """Mean training loss, clients weighted by their samples."""
        return sum(c.loss * c.samples for c in self.clients) / sum(c.samples for c in self.clients)

    def as_dict(self) -> dict[str, Any]:
        """Plain values: the fields and the sums over clients."""
        down, up = self.statistics
        return {
            "round": self.round,
            "phase": self.phase,
            "accuracy": round(self.accuracy, 4),
            "loss": self.loss,
            "train_loss": self.train_loss,
            "bytes_up": self.bytes_up,
            "bytes_down": self.bytes_down,
            "statistics_bytes_up": up,
            "statistics_bytes_down": down,
            "training_macs": self.training_macs,
            "seconds": round(self.seconds, 4),
            "clients": [dataclasses.asdict(client) for client in self.clients],
        }


@dataclass(frozen=True)
class Run:
    """A finished run. `full_cost` is what one round costs with full models on every client (FedAvg)."""

    experiment: Experiment
    history: tuple[RoundRecord, ...]
    global_state: State
    full_cost: Cost

    @property
    def accuracy(self) -> float:
        """The final global model's accuracy on the whole test set, in percent."""
        return self.history[-1].accuracy

    @property
    def bytes_up(self) -> int:
        """Bytes from all clients over the run, with one re-estimation of statistics where the policy has it."""
        return sum(record.bytes_up for record in self.history) + self.history[-1].statistics[1]

    @property
    def bytes_down(self) -> int:
        """Bytes to all clients over the run, with one re-estimation of statistics where the policy has it."""
        return sum(record.bytes_down for record in self.history) + self.history[-1].statistics[0]

    @property
    def training_macs(self) -> int:
        """Multiply-accumulates of all training steps over the run."""
        return sum(record.training_macs for record in self.history)

    @property
    def forward_macs(self) -> float:
        """Multiply-accumulates of one image through a client's submodel: the mean over clients, last round."""
        clients = self.history[-1].clients
        return sum(client.forward_macs for client in clients) / len(clients)

    @property
    def parameters(self) -> float:
        """Parameters of a client's submodel: the mean over clients, last round."""
        clients = self.history[-1].clients
        return sum(client.parameters for client in clients) / len(clients)

    @property
    def seconds(self) -> float:
        """Wall time of all rounds."""
        return sum(record.seconds for record in self.history)
