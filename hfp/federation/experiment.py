"""What a federated run is, as a frozen value that is checked when it is made. Torch is not imported for it."""

from __future__ import annotations

import builtins
import dataclasses
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from hfp.costs.devices import PROFILES, Device, parse_device
from hfp.data import datasets, schemes
from hfp.data.partition import OWN
from hfp.devices import check_device
from hfp.errors import InputError
from hfp.federation.privacy_account import PRIVACY, privacy_of
from hfp.federation.robust_rules import NormClip, parse_rules
from hfp.methods.interface.registry import create_method, method_names
from hfp.settings import EITHER, PAIRS, check_settings, setting, settings_of

if TYPE_CHECKING:
    from torch import nn

    from hfp.data import Dataset

GIVEN = "python:"
"""What stands in a file before the name of a model, data set or partition that was given in Python."""

MOST_THREADS = 1024
"""More than any machine computes one step with; far more end the process, because memory is taken for each."""

RANKS: Mapping[int, tuple[float, float]] = MappingProxyType(
    {0: (0.25, 0.0), 1: (0.25, 0.5), 2: (0.5, 0.75), 3: (0.75, 0.9)}
)
"""The ranks of arXiv 2603.12591: half of the clients prunes the first share of its channels, half the second."""

BUDGET_LIMITS: Mapping[str, str] = MappingProxyType(
    {
        "macs": "share of the full model's multiply-accumulates",
        "params": "share of the full model's parameters",
        "bytes": "bytes per round, down and up together",
        "seconds": "seconds per round on the client's device, for download, training and upload",
    }
)
"""What a client's budget may limit."""

LATE_REPLIES: Mapping[str, str] = MappingProxyType(
    {
        "discard": "the client is told to stop and its reply is lost",
        "join": "the client goes on, and its change joins the round in which it arrives",
    }
)
"""What happens to replies after the deadline."""

BATCH_NORM_POLICIES: Mapping[str, str] = MappingProxyType(
    {
        "aggregate": "the submodels' running statistics are averaged by the method's own rule, like any parameter",
        "reestimate": "after aggregation every client runs the global model over its own data, and the server pools "
        "the statistics it sends back; this asks all clients, also those that take no part in the round",
        "participants": "the same, but only of the clients that the round asked and that did not drop out",
        "local": "every client keeps the statistics of its own data, and accuracy is the mean over the clients' "
        "models, weighted by samples, each over the whole test set",
        "batch": "every batch of 500 test images, in random order, is normalised by its own statistics",
    }
)
"""Which batch-norm statistics the global model is tested with (`hfp.training.batch_norm`)."""

LEARNING_RATE_SCHEDULES: Mapping[str, str] = MappingProxyType(
    {
        "constant": "it stays the same",
        "cosine": "it falls along half a cosine, so that the round after the last would have none",
        "steps": "it is a tenth from the end of the first third of the rounds on, and a hundredth in the last third",
    }
)
"""How the learning rate goes over the rounds of a run."""


def asked_clients(participation: float, clients: int) -> int:
    """Count the clients that a round asks, which are a share of all and at least one."""
    return max(1, math.floor(participation * clients + 0.5))


def _is_dataset(value: object) -> bool:
    """Whether it is a data set itself, or a file's name of one that was given in Python."""
    if isinstance(value, str):
        return value.startswith(GIVEN)
    from hfp.data import Dataset

    return isinstance(value, Dataset)


def _is_partition(value: object) -> bool:
    """Whether it is the clients' indices themselves, or a file's name of some that were given in Python."""
    if isinstance(value, str):
        return value.startswith(GIVEN)
    return isinstance(value, Sequence) and not isinstance(value, bytes)


@dataclass(frozen=True, repr=False)
class Experiment:
    """One federated run. Every field is declared with its default, range and meaning, and checked on construction.

    Clients differ by the share of channels that each of them removes. `ratio` or `rank` gives that share, or it follows
    from a `budget`. The `profile` of a client's device decides how much simulated time a round takes on it.

    A client trains `epochs` per round. The first round trains `head_start` times as many, and each later round
    `head_start_decay` times as many as the one before, but at least `epochs` (decaying local epochs, Mills et al. 2023,
    arXiv 2305.09628). There is no head start where a `deadline` or a budget of ``seconds`` limits the time of a round,
    because a device that has just enough time would miss the first rounds.

    `partition` may also be a list with each client's indices into the training samples. `dataset` may also be a
    `hfp.data.Dataset`. `model` may also be a module, which is copied and starts with its own
    weights, or a callable without arguments that returns one. A file can't keep what is given in Python, so give it
    again to resume a run.

    Printed, an experiment shows the fields that differ from their defaults; in a notebook, it is a table of these.

    >>> from hfp import Experiment
    >>> Experiment(clients=4, rank=2).ratios
    (0.5, 0.5, 0.75, 0.75)

    Raises:
        InputError: a name isn't known (the message suggests known ones), or a value is of another kind or out of range.
    """

    method: str = setting(
        "ca-hfp",
        "The federation trains by this method; `hfp methods` says more about each.",
        choices=method_names,
        noun="method",
        group="method",
        aliases=("algorithm",),
    )
    options: Mapping[str, Any] = setting(
        {},
        "The method's own options; `hfp methods NAME` lists those of a method.",
        kind=object,
        shape=PAIRS,
        unit="name=value",
        group="method",
    )
    dataset: str | Dataset = setting(
        "digits",
        "The run trains on this data set.",
        choices=datasets,
        also=_is_dataset,
        noun="data set",
        group="data",
        aliases=("data",),
    )
    data_root: str | None = setting(
        None,
        "The data set's files are in this folder; an imagefolder is any tree of images.",
        kind=str,
        unit="path",
        group="data",
    )
    download: bool = setting(False, "The data set is downloaded into the data root where it is missing.", group="data")
    train_images: int | None = setting(
        None,
        "Only this many training images are used, the classes in their shares; the test set stays whole.",
        kind=int,
        within="[1, inf)",
        unit="images",
        group="data",
    )
    image_size: int | None = setting(
        None,
        "The images of an imagefolder are scaled to squares with sides of this length.",
        kind=int,
        within="[1, inf)",
        unit="pixels",
        group="data",
        aliases=("img-size",),
    )
    partition: str | Sequence[Sequence[int]] = setting(
        "dirichlet",
        "The training images are dealt out to the clients by this scheme; own is as the data set says, for instance by "
        "folders of clients.",
        choices=lambda: (*schemes(), OWN),
        also=_is_partition,
        noun="partition scheme",
        group="data",
    )
    clients_file: str | None = setting(
        None,
        "The training images are dealt out as this CSV or JSON file says, which has the client of every image; it "
        "replaces the partition.",
        kind=str,
        unit="file",
        group="data",
    )
    alpha: float = setting(
        1.0,
        "The Dirichlet partition has this concentration: small values give every class to few clients.",
        within="(0, inf)",
        group="data",
    )
    augment: bool = setting(False, "Training images are shifted and mirrored at random.", group="data")
    model: str | nn.Module | Callable[[], nn.Module] = setting(
        "resnet8",
        "The global model is this network, one of hfp's own, any classifier of timm or torchvision, or module:factory.",
        also=callable,
        group="model",
        aliases=("arch",),
    )
    pretrained: bool = setting(
        False, "Training starts from timm's pretrained weights, which are downloaded where need be.", group="model"
    )
    weights: str | None = setting(
        None,
        "Training starts from the weights in this file, safetensors or a state_dict that torch.save wrote.",
        kind=str,
        unit="file",
        group="model",
    )
    batch_norm: str | None = setting(
        None,
        "The global model is tested with batch-norm statistics from this source; by default reestimate where every "
        "round asks all clients, or with privacy, and participants otherwise.",
        kind=str,
        choices=BATCH_NORM_POLICIES,
        noun="batch-norm policy",
        group="model",
    )
    clients: int = setting(
        10, "The federation has this many clients.", within="[1, inf)", unit="clients", group="clients",
        aliases=("num-clients",),
    )  # fmt: skip
    rank: int = setting(
        1,
        "The first half of the clients removes one share of its channels, the second half another, as this rank says.",
        choices={rank: f"{first:.0%} and {second:.0%}" for rank, (first, second) in RANKS.items()},
        group="clients",
    )
    ratio: float | Sequence[float] | None = setting(
        None,
        "Every client removes this share of its channels, or each client its own share from a list; it replaces the "
        "rank.",
        kind=float,
        shape=EITHER,
        within="[0, 1)",
        reason="the share of channels removed",
        unit="share",
        group="clients",
        aliases=("pruning-ratio",),
    )
    budget: Mapping[str, float] | None = setting(
        None,
        "Every client removes as little as keeps it within these limits, which replaces rank and ratio.",
        kind=float,
        shape=PAIRS,
        within="(0, inf)",
        choices=BUDGET_LIMITS,
        noun="limit",
        unit="limit=most",
        group="clients",
    )
    first_ratio: float | None = setting(
        None,
        "Submodels grow: in the first round every client removes this share of its channels, if its own is not larger, "
        "and from round to round less, down to its own.",
        kind=float,
        within="[0, 1)",
        reason="the share of channels removed",
        unit="share",
        group="clients",
    )
    growth: float = setting(
        0.5,
        "Where there is a first ratio, submodels reach their own size after this share of the run's rounds.",
        within="(0, 1]",
        unit="share",
        group="clients",
    )
    participation: float = setting(
        1.0,
        "The server asks this share of the clients in each round.",
        within="(0, 1]",
        unit="share",
        group="clients",
        aliases=("fraction",),
    )
    replan: int = setting(
        1,
        "A client keeps its submodel's channels for this many rounds, or until its ratio changes; with 0 it keeps "
        "them as long as the method's phase lasts.",
        within="[0, inf)",
        unit="rounds",
        group="clients",
    )
    profile: str | Sequence[str] = setting(
        "phone",
        f"Clients run on these simulated devices, dealt out in turn: {', '.join(PROFILES)}, or figures per second as "
        "MACS:DOWN:UP. A fourth figure is the device's memory in bytes, which its client's training keeps within.",
        shape=EITHER,
        check=parse_device,
        unit="device",
        group="devices",
    )
    dropout: float = setting(
        0.0,
        "Each client that is asked never answers with this probability.",
        within="[0, 1)",
        unit="probability",
        group="devices",
    )
    deadline: float | None = setting(
        None,
        "Replies that take more than this simulated time are late.",
        kind=float,
        within="(0, inf)",
        unit="seconds",
        group="devices",
    )
    least_replies: int = setting(
        0,
        "A round with fewer replies that can be used ends the run, whose state before the round is kept.",
        within="[0, inf)",
        unit="replies",
        group="devices",
    )
    late: str = setting(
        "discard",
        "Late replies are treated in this way.",
        choices=LATE_REPLIES,
        noun="way with late replies",
        group="devices",
    )
    device: str = setting(
        "cpu",
        "The run computes on this device of PyTorch: cpu, cuda, cuda:1 and so on.",
        check=check_device,
        unit="device",
        group="devices",
    )
    amp: bool = setting(
        False, "Training computes in bfloat16 where that is safe, on a GPU that has it.", group="devices"
    )
    channels_last: bool = setting(
        False, "Images are laid out with their channels last, which half precision on a GPU prefers.", group="devices"
    )
    cuda_graphs: bool = setting(
        True,
        "On a GPU local steps are captured as CUDA graphs and replayed; results are the same to the last bit.",
        group="devices",
    )
    clients_in_flight: int = setting(
        4,
        "On a GPU this many clients train at once, which takes as many times the memory; results are the same.",
        within="[1, inf)",
        unit="clients",
        group="devices",
    )
    rounds: int = setting(
        30, "The run lasts this many rounds.", within="[1, 1000000]", unit="rounds", group="training",
        aliases=("num-rounds",),
    )  # fmt: skip
    patience: int = setting(
        0,
        "The run ends early once the global model's test accuracy has not risen for this many rounds; with 0 it never "
        "does.",
        within="[0, inf)",
        unit="rounds",
        group="training",
    )
    epochs: int = setting(
        1, "A client trains this many local epochs per round.", within="[1, inf)", unit="epochs", group="training",
        aliases=("local-epochs",),
    )  # fmt: skip
    head_start: float = setting(
        10.0,
        "The first round trains this many times the local epochs; with 1 all rounds are alike.",
        within="[1, inf)",
        unit="factor",
        group="training",
    )
    head_start_decay: float = setting(
        0.85,
        "The head start is multiplied by this factor from one round to the next.",
        within="[0, 1)",
        unit="factor",
        group="training",
    )
    batch_size: int = setting(
        32,
        "A local step trains on this many images.",
        within="[2, 1000000]",
        reason="batch-norm needs two images, and all of a batch are in memory",
        unit="images",
        group="training",
        aliases=("batch", "bs"),
    )
    learning_rate: float = setting(
        0.05, "Local SGD has this learning rate.", within="(0, 1000000]", group="training", aliases=("lr",)
    )
    learning_rate_schedule: str = setting(
        "constant",
        "The learning rate changes from round to round in this way.",
        choices=LEARNING_RATE_SCHEDULES,
        noun="learning-rate schedule",
        group="training",
        aliases=("lr-schedule",),
    )
    learning_rate_decay: float = setting(
        1.0,
        "The learning rate is multiplied by this factor from one round to the next, whatever its schedule.",
        within="(0, 1]",
        unit="factor",
        group="training",
        aliases=("lr-decay",),
    )
    clip_norm: float = setting(
        0.0,
        "A local step scales its gradient down to this Euclidean norm where it is longer; 0 leaves it as it is.",
        kind=float,
        within="[0, inf)",
        unit="norm",
        group="training",
        aliases=("max-grad-norm",),
    )
    momentum: float = setting(0.9, "Local SGD has this momentum.", within="[0, 1)", group="training")
    weight_decay: float = setting(
        0.0, "Local SGD has this weight decay.", within="[0, 1000000]", group="training", aliases=("wd",)
    )
    seed: int = setting(
        0,
        "This number decides the subset and partition of the data, the initial weights, the batches and the masks.",
        within="[0, inf)",
        group="training",
    )
    robust: str | None = setting(
        None,
        "Updates that stand out are held back by these rules, with commas between them: norm-clip:C, trimmed-mean:N, "
        "median.",
        kind=str,
        check=parse_rules,
        unit="rule[,rule…]",
        group="method",
    )
    privacy: Mapping[str, float] | None = setting(
        None,
        "The global model is differentially private: every client's change is clipped and noise is added.",
        kind=float,
        shape=PAIRS,
        within="(0, inf)",
        choices=PRIVACY,
        noun="part of privacy",
        unit="name=value",
        group="method",
    )
    evaluate: int = setting(
        1,
        "The global model is tested after every so many rounds, and at the end.",
        within="[1, inf)",
        unit="rounds",
        group="output",
    )
    personal: int = setting(
        0,
        "The clients' own models are tested after every so many rounds, and after the last of all rounds; with 0 they "
        "are never tested.",
        within="[0, inf)",
        unit="rounds",
        group="output",
    )
    diagnostics: bool = setting(
        False, "The run also measures gradient variance, the overlap of submodels, coverage and more.", group="output"
    )

    def __post_init__(self) -> None:
        """Check what can be checked without reading data."""
        check_settings(self)
        if self.train_images is not None and self.train_images < self.clients:
            raise InputError(f"train_images must be at least {self.clients} (clients); found {self.train_images}")
        if self.least_replies > (asked := asked_clients(self.participation, self.clients)):
            raise InputError(
                f"least_replies must be at most {asked}, which is how many clients a round asks; found "
                f"{self.least_replies}"
            )
        for rule in parse_rules(self.robust) if self.robust is not None and self.late == "discard" else ():
            if not isinstance(rule, NormClip) and rule.fewest_holders > asked:
                raise InputError(
                    f"robust: {self.robust} needs at least {rule.fewest_holders} clients that train the same entry, or "
                    f"nothing is learnt; a round asks {asked}"
                )
        if isinstance(self.ratio, tuple) and len(self.ratio) != self.clients:
            raise InputError(f"ratio must be one number or one per client ({self.clients}); found {len(self.ratio)}")
        if self.budget is not None and self.ratio is not None:
            raise InputError(f"budget must be given alone, because ratios follow from it; found ratio {self.ratio} too")
        if self.pretrained and self.weights is not None:
            raise InputError(
                f"weights must be left out with pretrained, which says too where to start; found {self.weights!r}"
            )
        self._check_partition()
        for name, needs, there in (
            ("growth", "first_ratio, with which alone submodels grow", self.first_ratio is not None),
            ("alpha", "the Dirichlet partition, which alone has a concentration", self._deals_by_classes),
            ("late", "a deadline, without which no reply is late", self.deadline is not None),
            ("head_start_decay", "a head start, which alone decays", self.head_start != 1),
        ):
            if not there and (found := getattr(self, name)) != getattr(Experiment, name):
                raise InputError(f"{name} must be left out without {needs}; found {found}")
        for name in ("data_root", "train_images", "image_size", "download"):
            if not isinstance(self.dataset, str) and getattr(self, name):
                raise InputError(
                    f"{name} must be left out where the data set itself is given; found {getattr(self, name)!r}"
                )
        if self.privacy is not None:
            privacy_of(self.privacy)
        if self.privacy is not None and self.robust is not None:
            raise InputError(
                "robust must be left out in a private run: a rule compares clients, so that one of them could change "
                f"the sum by more than clip; found {self.robust}"
            )
        if self.privacy is not None and self.late == "join":
            raise InputError("late must be discard in a private run, where a client counts at most once per round")
        if self.privacy is not None and self.batch_norm in ("participants", "aggregate"):
            raise InputError(
                "batch_norm must be another policy with privacy, which releases noised parameters and the noised "
                f"statistics of all clients alone: leave it out, or use local or batch; found {self.batch_norm}"
            )
        create_method(self.method, **self.options)

    @property
    def batch_norm_policy(self) -> str:
        """The source of the batch-norm statistics, which follows from other settings where none is given.

        A round that asks a share of the clients is not to ask all the others for its test. Private statistics are those
        of all clients, which is what the privacy spent is counted for.

        >>> Experiment().batch_norm_policy, Experiment(participation=0.1).batch_norm_policy
        ('reestimate', 'participants')
        """
        if self.batch_norm is not None:
            return self.batch_norm
        return "reestimate" if self.participation == 1 or self.privacy is not None else "participants"

    def _check_partition(self) -> None:
        """Check how samples are dealt out where no scheme does it, and copy indices that were given."""
        given = not isinstance(self.partition, str)
        if not isinstance(self.partition, str):
            try:
                parts = tuple(tuple(operator.index(one) for one in part) for part in self.partition)
            except TypeError as error:
                raise InputError(f"partition must be a list of whole indices for each client: {error}") from None
            object.__setattr__(self, "partition", parts)
            if len(self.partition) != self.clients:
                raise InputError(
                    f"partition must have a list of indices for each of {self.clients} clients; found "
                    f"{len(self.partition)}"
                )
        if self.clients_file is not None and self.partition != "dirichlet":
            found = repr(self.partition) if isinstance(self.partition, str) else "lists of indices"
            raise InputError(f"clients_file says who has what; leave partition out; found {found} too")
        if self.train_images is not None and (given or self.clients_file is not None):
            what = "partition" if given else "clients_file"
            raise InputError(f"train_images must be left out where {what} names the images; found {self.train_images}")

    def measures(self, round: int) -> bool:
        """Tell whether the global model is tested after a round; rounds count from 0."""
        return (round + 1) % self.evaluate == 0 or round + 1 == self.rounds or self.measures_own(round)

    def measures_own(self, round: int) -> bool:
        """Tell whether clients' own models are tested in a round; rounds count from 0."""
        return self.personal > 0 and ((round + 1) % self.personal == 0 or round + 1 == self.rounds)

    def epochs_in(self, round: int) -> int:
        """Count the local epochs that a client trains in a round; rounds count from 0."""
        bounded = self.deadline is not None or "seconds" in (self.budget or {})
        times = 1 if bounded else max(1, builtins.round(self.head_start * self.head_start_decay**round))
        return times * self.epochs

    def ratio_in(self, round: int, own: float) -> float:
        """The share of its channels that a client removes in a round, counted from 0.

        >>> grows = Experiment(rounds=8, first_ratio=0.9)
        >>> [round(grows.ratio_in(now, own=0.5), 2) for now in range(6)]
        [0.9, 0.8, 0.7, 0.6, 0.5, 0.5]

        Args:
            round: the round.
            own: the client's own ratio, which it has in the end.
        """
        if self.first_ratio is None or own >= self.first_ratio:
            return own
        left = max(0.0, 1 - round / (self.growth * self.rounds))
        return own + left * (self.first_ratio - own)

    def rate_factor(self, round: int) -> float | None:
        """What the learning rate is multiplied by in a round, counted from 0; None where it never changes.

        >>> Experiment(rounds=4, learning_rate_schedule="cosine").rate_factor(2)
        0.5
        """
        if self.learning_rate_schedule == "constant" and self.learning_rate_decay == 1:
            return None
        shapes = {
            "constant": 1.0,
            "cosine": (1 + math.cos(math.pi * round / self.rounds)) / 2,
            "steps": 10.0 ** -(3 * round // self.rounds),
        }
        return shapes[self.learning_rate_schedule] * self.learning_rate_decay**round

    @property
    def devices(self) -> tuple[Device, ...]:
        """Each client's device."""
        dealt = tuple(parse_device(text) for text in self._profiles)
        return tuple(dealt[client % len(dealt)] for client in range(self.clients))

    @property
    def _profiles(self) -> tuple[str, ...]:
        return (self.profile,) if isinstance(self.profile, str) else tuple(self.profile)

    @property
    def ratios(self) -> tuple[float, ...]:
        """The share of channels that each client removes, unless a budget decides."""
        if self.ratio is None:
            first, second = RANKS[self.rank]
            half = (self.clients + 1) // 2
            return (first,) * half + (second,) * (self.clients - half)
        if isinstance(self.ratio, Sequence):
            return tuple(self.ratio)
        return (self.ratio,) * self.clients

    def __repr__(self) -> str:
        """Show the fields that differ from their defaults, as in a call."""
        return f"Experiment({', '.join(f'{name}={value!r}' for name, value in self._changed().items())})"

    def _repr_html_(self) -> str:
        """Show the same fields in a table, with the meaning of each."""
        from hfp.reconstruct.maps.tables import html_table

        declared = settings_of(self)
        rows = [(name, value, declared[name].help) for name, value in self._changed().items()]
        return html_table("Experiment: settings that differ from the defaults", ("setting", "value", "meaning"), rows)

    def _changed(self) -> dict[str, Any]:
        values = self.as_dict()
        return {name: values[name] for name, made in settings_of(self).items() if values[name] != made.default}

    @property
    def dataset_name(self) -> str:
        """What results call the data set."""
        return self.dataset if isinstance(self.dataset, str) else self.dataset.name

    @property
    def deals_by_scheme(self) -> bool:
        """Whether a scheme deals the samples out, and no file, list or data set says who has what."""
        return self.clients_file is None and self.partition in schemes()

    @property
    def partition_name(self) -> str:
        """What results call the way in which samples are dealt out."""
        if self.clients_file is not None:
            return f"as {self.clients_file} says"
        return self.partition if isinstance(self.partition, str) else "as given"

    @property
    def dealt(self) -> str:
        """How samples are dealt out, in a few words: the concentration where the partition has one."""
        return f"alpha {self.alpha:g}" if self._deals_by_classes else self.partition_name

    @property
    def _deals_by_classes(self) -> bool:
        return self.clients_file is None and self.partition == "dirichlet"

    @property
    def model_name(self) -> str:
        """What results call the model."""
        if isinstance(self.model, str):
            return self.model
        return str(getattr(self.model, "__qualname__", type(self.model).__qualname__))

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, as written to ``config.json``; ``Experiment(**values)`` makes the experiment again.

        Of a model, data set or partition that was given in Python only the name is kept, after `GIVEN`. Replace it
        before the experiment is set up again.
        """
        values = {entry.name: getattr(self, entry.name) for entry in dataclasses.fields(self)}
        given = {
            field: f"{GIVEN}{name}"
            for field, name in (
                ("dataset", self.dataset_name),
                ("model", self.model_name),
                ("partition", f"{self.clients} lists"),
            )
            if not isinstance(values[field], str)
        }
        tables = {name: dict(values[name]) for name in ("options", "budget", "privacy") if values[name] is not None}
        return {**values, **tables, **given}
