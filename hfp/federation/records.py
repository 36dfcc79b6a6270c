"""A run's figures, as frozen values that can be turned into plain JSON."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from hfp.errors import InputError, counted
from hfp.federation.ending import why_ended
from hfp.federation.experiment import Experiment
from hfp.finite import finite
from hfp.methods import State
from hfp.reconstruct.maps.tables import html_table

if TYPE_CHECKING:
    from hfp.federation.diagnostics import Diagnostics

MEGABYTE = 1e6
IN_TIME, LATE, DROPPED, FAILED, REFUSED = "in time", "late", "dropped", "failed", "refused"
LOST = (DROPPED, FAILED, REFUSED)
"""The statuses of clients without a reply that can be used."""

_MOST_ROWS = 20  # of a run's table in a notebook
_COLUMNS = ("round", "accuracy, %", "training loss", "MB up", "MB down", "device seconds")


@dataclass(frozen=True)
class Cost:
    """What rounds cost.

    Args:
        bytes_down: bytes sent to all clients.
        bytes_up: bytes sent by all clients.
        training_macs: multiply-accumulates of all clients' training.
        forward_macs: multiply-accumulates of one image through one model.
        parameters: parameters of one model.
        peak_bytes: bytes that training keeps at its peak on one client.
        seconds: simulated time until every round's slowest client is done.
    """

    bytes_down: int
    bytes_up: int
    training_macs: int
    forward_macs: int
    parameters: int
    peak_bytes: int
    seconds: float


@dataclass(frozen=True)
class ClientRecord:
    """One client in one round. A client without a reply has only the figures of its download.

    Args:
        client: its index.
        ratio: its ratio, the share of channels that its submodel leaves out; what a method that prunes otherwise makes
            of it is in `hfp methods NAME`. Where ratios make no difference, the share of channels left out.
        samples: how many training samples it has.
        bytes_down: bytes of its task.
        device: the profile of its simulated device, to which all seconds belong.
        seconds_down: seconds of the download.
        steps: its local steps.
        loss: its mean training loss.
        bytes_up: bytes of its reply.
        parameters: parameters of its submodel.
        forward_macs: multiply-accumulates of one image through its submodel.
        training_macs: multiply-accumulates of all its steps; a step costs three forward passes.
        peak_bytes: bytes that training keeps at its peak (`hfp.costs.memory`).
        seconds_training: seconds of training.
        seconds_up: seconds of the upload.
        status: `IN_TIME`; `LATE`, after the deadline; `DROPPED`, it never answered; `FAILED`, it could not do the task;
            or `REFUSED`, its reply is no answer to the task.
        problem: says more, in a sentence.
    """

    client: int
    ratio: float
    samples: int
    bytes_down: int
    device: str
    seconds_down: float
    steps: int = 0
    loss: float = 0.0
    bytes_up: int = 0
    parameters: int = 0
    forward_macs: int = 0
    training_macs: int = 0
    peak_bytes: int = 0
    seconds_training: float = 0.0
    seconds_up: float = 0.0
    status: str = IN_TIME
    problem: str = ""

    def dropped_round(self, problem: str) -> ClientRecord:
        """The record where no reply of the round was used; one that was lost, or came late, stays as it is."""
        used = self.status == IN_TIME
        return dataclasses.replace(self, status=REFUSED, problem=problem) if used else self

    @property
    def device_seconds(self) -> float:
        """The seconds of download, training and upload together."""
        return self.seconds_down + self.seconds_training + self.seconds_up


@dataclass(frozen=True)
class ClientAccuracy:
    """Accuracy on test images in the proportions of one client's classes, in percent.

    Args:
        client: its index.
        own: of the submodel that it ended its training with.
        shared: of the new global model.
    """

    client: int
    own: float
    shared: float


@dataclass(frozen=True)
class Personal:
    """Mean accuracy over clients, each on test images in the proportions of its own classes, in percent.

    Args:
        own: of the submodel that each client ended its training with.
        shared: of the new global model.
        clients: the figures of every client whose update came.
    """

    own: float
    shared: float
    clients: tuple[ClientAccuracy, ...] = ()


@dataclass(frozen=True)
class RoundRecord:
    """One round.

    Args:
        round: counted from 1.
        phase: the method's word for what the round did.
        accuracy: the global model's on the whole test set, in percent; None if it was not tested.
        loss: the global model's mean cross-entropy on the whole test set; None if it was not tested.
        clients: the clients that were asked.
        statistics: what one re-estimation of batch-norm statistics moves, (bytes down, bytes up). A curve needs it in
            every round, a deployment only once, for its final model.
        seconds: wall time.
        deadline: the simulated time after which replies are late.
        f1: the mean of the classes' F1 scores on the whole test set, in percent; None if it was not tested.
        figures: what observers measured, by name.
        process_peak_bytes: the most memory that the process has had at one time by the end of the round; None where the
            system doesn't say. Like `seconds`, it is of the machine, and differs between two runs of one experiment.
        device_peak_bytes: the same of tensors on the GPU; None without one.
    """

    round: int
    phase: str
    accuracy: float | None
    loss: float | None
    clients: tuple[ClientRecord, ...]
    statistics: tuple[int, int]
    seconds: float
    deadline: float | None = None
    f1: float | None = None
    figures: Mapping[str, Any] = field(default_factory=dict)
    process_peak_bytes: int | None = None
    device_peak_bytes: int | None = None

    @property
    def personal(self) -> Personal | None:
        """How well clients' own models do on data like theirs; None where it was not measured."""
        return self.figures.get("personal")

    @property
    def diagnostics(self) -> Diagnostics | None:
        """The round's diagnostics (`hfp.federation.diagnostics`); None where they were not measured."""
        return self.figures.get("diagnostics")

    @property
    def trained(self) -> tuple[ClientRecord, ...]:
        """The clients that trained and were heard of."""
        return tuple(client for client in self.clients if client.status not in LOST)

    @property
    def device_seconds(self) -> float:
        """Simulated time of the round: until the last reply in time, or the deadline where one is missing."""
        if self.deadline is not None and any(client.status != IN_TIME for client in self.clients):
            return self.deadline
        return max((client.device_seconds for client in self.trained), default=0.0)

    def count(self, status: str) -> int:
        """Count the clients that ended with this status."""
        return sum(client.status == status for client in self.clients)

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
        """Mean training loss, clients weighted by their samples; NaN where nobody trained."""
        samples = sum(client.samples for client in self.trained)
        return sum(client.loss * client.samples for client in self.trained) / samples if samples else math.nan

    def as_dict(self) -> dict[str, Any]:
        """Return plain values: the fields, and the sums over clients. Numbers that are not finite become None."""
        down, up = self.statistics
        plain = {
            "round": self.round,
            "phase": self.phase,
            "accuracy": None if self.accuracy is None else round(self.accuracy, 4),
            "f1": None if self.f1 is None else round(self.f1, 4),
            "loss": self.loss,
            "train_loss": self.train_loss,
            "bytes_up": self.bytes_up,
            "bytes_down": self.bytes_down,
            "statistics_bytes_up": up,
            "statistics_bytes_down": down,
            "training_macs": self.training_macs,
            "seconds": round(self.seconds, 4),
            "process_peak_bytes": self.process_peak_bytes,
            "device_peak_bytes": self.device_peak_bytes,
            "device_seconds": round(self.device_seconds, 6),
        }
        figures = {name: _plain(value) for name, value in self.figures.items()}
        return finite({**plain, **figures, "clients": [dataclasses.asdict(client) for client in self.clients]})


def megabytes_so_far(rounds: Iterable[tuple[int, int]]) -> list[float]:
    """Return what a run that had ended after each round would have moved, up and down, in megabytes.

    Like a finished run's bytes these are the submodels of all rounds and one re-estimation of batch-norm statistics.

    Args:
        rounds: for each round the bytes of its submodels, and those of one re-estimation.

    >>> megabytes_so_far([(2_000_000, 500_000), (2_000_000, 500_000)])
    [2.5, 4.5]
    """
    pairs = list(rounds)
    moved = accumulate(submodels for submodels, _ in pairs)
    return [(total + once) / MEGABYTE for total, (_, once) in zip(moved, pairs, strict=True)]


def megabytes_in(lines: Sequence[Mapping[str, Any]]) -> list[float]:
    """Return the same as `megabytes_so_far` for rounds as `RoundRecord.as_dict` gives them."""
    return megabytes_so_far(
        (line["bytes_up"] + line["bytes_down"], line["statistics_bytes_up"] + line["statistics_bytes_down"])
        for line in lines
    )


def check_figures(record: RoundRecord) -> None:
    """Refuse figures of observers that a metrics file can't hold beside the record's own.

    Raises:
        InputError: naming the figure.
    """
    own = dataclasses.replace(record, clients=(), figures={}).as_dict()
    for name, value in record.figures.items():
        if name in own:
            raise InputError(f"an observer's figure can't be called {name!r}: every round has that already")
        try:
            json.dumps({name: _plain(value)})
        except (TypeError, ValueError) as error:
            message = f"an observer's figure {name!r} must be of numbers, text, lists and mappings: {error}"
            raise InputError(message) from None


def _plain(value: Any) -> Any:
    if hasattr(value, "as_dict"):
        return value.as_dict()
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value


@dataclass(frozen=True, repr=False)
class Run:
    """A finished run, which `hfp.simulate` returns.

    Printed, it is one line; in a notebook, it is a table of its rounds.

    Args:
        experiment: what was run.
        history: the figures of every round.
        global_state: the state of the global model after the last round.
        full_cost: what the same rounds cost with full models on every client, as in FedAvg.

    >>> import hfp
    >>> run = hfp.simulate(hfp.Experiment(clients=2, train_images=64, rounds=1, head_start=1.0))
    >>> len(run.history), run.bytes_up < run.full_cost.bytes_up
    (1, True)
    """

    experiment: Experiment
    history: tuple[RoundRecord, ...]
    global_state: State
    full_cost: Cost

    @property
    def accuracy(self) -> float:
        """The global model's accuracy on the whole test set, in percent, when it was last tested; NaN if never."""
        return self._last("accuracy")

    @property
    def f1(self) -> float:
        """The mean of the classes' F1 scores, in percent, when the global model was last tested; NaN if never."""
        return self._last("f1")

    @property
    def ended(self) -> str:
        """Why the run is over; empty where it was stopped and can go on."""
        tested = [record.accuracy for record in self.history]
        return why_ended(tested, self.experiment.rounds, self.experiment.patience)

    @property
    def personal(self) -> Personal | None:
        """How well clients' own models do on data like theirs, in the last round that measured it."""
        return next((record.personal for record in reversed(self.history) if record.personal is not None), None)

    @property
    def ratios(self) -> tuple[float, ...]:
        """The clients' different ratios, ascending."""
        return tuple(sorted({client.ratio for record in self.history for client in record.clients}))

    @property
    def bytes_up(self) -> int:
        """Bytes from all clients over the run, with one re-estimation of statistics where the policy has it."""
        return sum(record.bytes_up for record in self.history) + sum(r.statistics[1] for r in self.history[-1:])

    @property
    def bytes_down(self) -> int:
        """Bytes to all clients over the run, with one re-estimation of statistics where the policy has it."""
        return sum(record.bytes_down for record in self.history) + sum(r.statistics[0] for r in self.history[-1:])

    @property
    def training_macs(self) -> int:
        """Multiply-accumulates of all training steps over the run."""
        return sum(record.training_macs for record in self.history)

    @property
    def forward_macs(self) -> float:
        """Multiply-accumulates of one image through a client's submodel: the mean over clients, last round with any."""
        return self._mean("forward_macs")

    @property
    def parameters(self) -> float:
        """Parameters of a client's submodel: the mean over clients, last round with any."""
        return self._mean("parameters")

    @property
    def peak_bytes(self) -> float:
        """Bytes that a client's training keeps at its peak: the largest client's, over the run."""
        return max((client.peak_bytes for record in self.history for client in record.clients), default=0)

    def _last(self, figure: str) -> float:
        values = (getattr(record, figure) for record in reversed(self.history))
        return next((value for value in values if value is not None), math.nan)

    def _mean(self, figure: str) -> float:
        clients = next((record.trained for record in reversed(self.history) if record.trained), ())
        return sum(getattr(client, figure) for client in clients) / max(len(clients), 1)

    @property
    def device_seconds(self) -> float:
        """Simulated time of all rounds on the clients' devices."""
        return sum(record.device_seconds for record in self.history)

    @property
    def seconds(self) -> float:
        """Wall time of all rounds."""
        return sum(record.seconds for record in self.history)

    @property
    def process_peak_bytes(self) -> int | None:
        """The most memory that the process had at one time, over the run; None where the system doesn't say."""
        return max((r.process_peak_bytes for r in self.history if r.process_peak_bytes is not None), default=None)

    @property
    def device_peak_bytes(self) -> int | None:
        """The most memory that tensors on the GPU had at one time, over the run; None without a GPU."""
        return max((r.device_peak_bytes for r in self.history if r.device_peak_bytes is not None), default=None)

    def __repr__(self) -> str:
        experiment = self.experiment
        about = f"{experiment.method} on {experiment.dataset_name}, {experiment.model_name}"
        return f"Run({about}: {counted(len(self.history), 'round')}, {self.accuracy:.2f} %)"

    def _repr_html_(self) -> str:
        """Show rounds in which the global model was tested, about `_MOST_ROWS` of them with the last one."""
        tested = [record for record in self.history if record.accuracy is not None]
        shown = tested[:: -(len(tested) // _MOST_ROWS + 1)][::-1]
        rows = [
            (
                record.round,
                f"{record.accuracy:.2f}",
                f"{record.train_loss:.3f}",
                f"{record.bytes_up / MEGABYTE:,.2f}",
                f"{record.bytes_down / MEGABYTE:,.2f}",
                f"{record.device_seconds:,.2f}",
            )
            for record in shown
        ]
        return html_table(repr(self), _COLUMNS, rows)
