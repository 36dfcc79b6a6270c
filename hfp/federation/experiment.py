"""What a federated run is made of: a frozen value that is checked when it is made."""

from __future__ import annotations

import builtins
import dataclasses
import math
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from hfp.costs.devices import Device, parse_device
from hfp.data import datasets, schemes
from hfp.errors import InputError, unknown
from hfp.methods import create_method
from hfp.training.batch_norm import POLICIES

RANKS: Mapping[int, tuple[float, float]] = MappingProxyType(
    {0: (0.25, 0.0), 1: (0.25, 0.5), 2: (0.5, 0.75), 3: (0.75, 0.9)}
)
"""Device ranks of arXiv 2603.12591: half of the clients prune the first share of their channels, half the second."""

BUDGET_LIMITS: Mapping[str, str] = MappingProxyType(
    {
        "macs": "share of the full model's multiply-accumulates",
        "params": "share of the full model's parameters",
        "bytes": "bytes a round, down and up together",
        "seconds": "seconds a round on the client's device: download, training, upload",
    }
)
"""What a client's budget may limit."""

LATE_REPLIES: Mapping[str, str] = MappingProxyType(
    {
        "discard": "the client is told to stop and its reply is lost",
        "join": "the client goes on, and its change joins the round in which it arrives",
    }
)
"""What becomes of replies after the deadline."""


@dataclass(frozen=True)
class Experiment:
    """One federated run. Every field is checked on construction.

    Clients differ by `ratio`, the share of channels each one removes: one number for all of them, or one for each;
    without it `rank` gives the paper's pairs (`RANKS`). `options` are the method's own settings, by name.
    `train_images` keeps that many training images (a stratified subset); the test set stays whole. `image_size` is the
    side in pixels of an image folder's images.

    A client's device is a `profile` (`hfp.costs.devices`: a name or MACS:DOWN:UP); several are dealt out in turn. They say
    what a round takes in simulated time. With a `budget` (`BUDGET_LIMITS`: the most that a client can afford) each client's
    ratio is the smallest that keeps within it. Every round asks the share `participation` of the clients; each of them
    drops out with probability `dropout`; replies after `deadline` simulated seconds are `late` (`LATE_REPLIES`). A client keeps
    its plan for `replan` rounds, 0 for as long as the method's phase lasts.

    A round trains `epochs` on each client, the first ones more: `head_start` times as many, and `head_start_decay` of
    that from round to round, until it is `epochs` (decaying local epochs, Mills et al. 2023, arXiv 2305.09628). A
    `head_start` of 1 is none, and there is none where rounds are bounded in time, by a `deadline` or a budget of
    ``seconds``: a device that has just enough of it would miss the first rounds.

    The global model is tested every `evaluate` rounds and after the last one; clients' own models every `personal`
    rounds and after the last one, never with 0 (`hfp.federation.evaluation`). `diagnostics` measures more every round
    (`hfp.federation.diagnostics`). `amp` computes in bfloat16 where that is safe, `channels_last` lays images out for it; both are
    for GPUs.

    Raises:
        InputError: a name isn't known (with the nearest known ones) or a number is out of its range.
    """

    method: str = "ca-hfp"
    dataset: str = "digits"
    model: str = "resnet8"
    clients: int = 10
    rank: int = 1
    ratio: float | Sequence[float] | None = None
    partition: str = "dirichlet"
    alpha: float = 1.0
    rounds: int = 30
    epochs: int = 1
    head_start: float = 10.0
    head_start_decay: float = 0.85
    batch_size: int = 32
    learning_rate: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 0.0
    augment: bool = False
    batch_norm: str = "reestimate"
    seed: int = 0
    device: str = "cpu"
    data_root: str | None = None
    download: bool = False
    train_images: int | None = None
    image_size: int | None = None
    profile: str | Sequence[str] = "phone"
    budget: Mapping[str, float] | None = None
    participation: float = 1.0
    dropout: float = 0.0
    deadline: float | None = None
    late: str = "discard"
    replan: int = 1
    diagnostics: bool = False
    evaluate: int = 1
    personal: int = 0
    amp: bool = False
    channels_last: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check every field that can be checked without reading data."""
        self._check_kinds()
        if isinstance(self.ratio, Sequence):
            object.__setattr__(self, "ratio", tuple(self.ratio))
        if self.dataset not in datasets():
            raise unknown("data set", self.dataset, datasets())
        if self.partition not in schemes():
            raise unknown("partition scheme", self.partition, schemes())
        if self.batch_norm not in POLICIES:
            raise unknown("batch-norm policy", self.batch_norm, POLICIES)
        for name in ("clients", "rounds", "epochs"):
            _check(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        start, decay = self.head_start, self.head_start_decay
        _check(_finite(start) and start >= 1, "head_start", "a finite number of at least 1", start)
        _check(0 <= decay < 1, "head_start_decay", "in [0, 1)", decay)
        _check(self.batch_size >= 2, "batch_size", "at least 2 (batch-norm needs two images)", self.batch_size)
        _check(self.seed >= 0, "seed", "at least 0", self.seed)
        _check(_finite(self.alpha) and self.alpha > 0, "alpha", "a finite number above 0", self.alpha)
        _check(_finite(self.learning_rate) and self.learning_rate > 0, "learning_rate", "above 0", self.learning_rate)
        _check(0 <= self.momentum < 1, "momentum", "in [0, 1)", self.momentum)
        _check(_finite(self.weight_decay) and self.weight_decay >= 0, "weight_decay", "at least 0", self.weight_decay)
        images = self.train_images
        _check(images is None or images >= self.clients, "train_images", f"at least {self.clients} (clients)", images)
        if self.ratio is None and self.rank not in RANKS:
            raise InputError(f"rank must be one of {', '.join(map(str, RANKS))}; found {self.rank}")
        if isinstance(self.ratio, Sequence) and len(self.ratio) != self.clients:
            raise InputError(f"ratio must be one number or one per client ({self.clients}); found {len(self.ratio)}")
        for ratio in self.ratios:
            _check(0 <= ratio < 1, "ratio", "in [0, 1): the share of channels removed", ratio)
        self._check_fleet()
        object.__setattr__(self, "options", MappingProxyType(dict(self.options)))
        create_method(self.method, **self.options)

    def _check_kinds(self) -> None:
        """Files give any kind of value; comparing a wrong one would not say what is wrong."""
        for entry in dataclasses.fields(self):
            value, kind = getattr(self, entry.name), type(entry.default)
            if kind not in _KINDS or entry.name == "profile":
                continue
            accepted, words = _KINDS[kind]
            fits = isinstance(value, accepted) and (kind is bool or not isinstance(value, bool))
            _check(fits, entry.name, words, repr(value))

    def _check_fleet(self) -> None:
        """Check what says how clients differ."""
        if not isinstance(self.profile, str):
            object.__setattr__(self, "profile", tuple(self.profile))
        _check(len(self.profile) > 0, "profile", "the name of a device profile", repr(self.profile))
        for text in self._profiles:
            parse_device(text)
        if self.budget is not None:
            object.__setattr__(self, "budget", MappingProxyType(dict(self.budget)))
            _check(
                self.ratio is None, "budget", "given alone, because ratios follow from it", f"ratio {self.ratio} too"
            )
        for name, limit in (self.budget or {}).items():
            if name not in BUDGET_LIMITS:
                raise unknown("limit", name, BUDGET_LIMITS)
            _check(_finite(limit) and limit > 0, f"limit {name}", "a finite number above 0", limit)
        _check(0 < self.participation <= 1, "participation", "in (0, 1]", self.participation)
        _check(0 <= self.dropout < 1, "dropout", "in [0, 1)", self.dropout)
        deadline = self.deadline
        _check(
            deadline is None or (_finite(deadline) and deadline > 0), "deadline", "a finite number above 0", deadline
        )
        if self.late not in LATE_REPLIES:
            raise unknown("way with late replies", self.late, LATE_REPLIES)
        _check(self.replan >= 0, "replan", "at least 0", self.replan)
        _check(self.evaluate >= 1, "evaluate", "at least 1", self.evaluate)
        _check(self.personal >= 0, "personal", "at least 0", self.personal)

    def measures(self, round: int) -> bool:
        """Whether the global model is tested after a round, counted from 0."""
        return (round + 1) % self.evaluate == 0 or round + 1 == self.rounds or self.measures_own(round)

    def measures_own(self, round: int) -> bool:
        """Whether clients' own models are tested in a round, counted from 0."""
        return self.personal > 0 and ((round + 1) % self.personal == 0 or round + 1 == self.rounds)

    def epochs_in(self, round: int) -> int:
        """How many local epochs a client trains in a round, counted from 0."""
        bounded = self.deadline is not None or "seconds" in (self.budget or {})
        times = 1 if bounded else max(1, builtins.round(self.head_start * self.head_start_decay**round))
        return times * self.epochs

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

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as written to a run's ``config.json``; ``Experiment(**values)`` gives the experiment back."""
        values = {entry.name: getattr(self, entry.name) for entry in dataclasses.fields(self)}
        budget = None if self.budget is None else dict(self.budget)
        return {**values, "options": dict(self.options), "budget": budget}


_KINDS: Mapping[type, tuple[type, str]] = MappingProxyType(
    {
        bool: (bool, "true or false"),
        int: (numbers.Integral, "a whole number"),
        float: (numbers.Real, "a number"),
        str: (str, "a name"),
    }
)


def _finite(value: float) -> bool:
    return math.isfinite(value)


def _check(holds: bool, name: str, expected: str, found: object) -> None:
    if not holds:
        raise InputError(f"{name} must be {expected}; found {found}")
