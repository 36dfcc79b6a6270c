"""The paper's tables and figures as comparisons, at the paper's size and at smaller ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import custom_method  # noqa: F401  (makes delta-w known)
import torch
from parts import PARTS

from hfp.comparison.definition import Comparison, Variant, variants_of
from hfp.comparison.page import round_chart, size_chart
from hfp.comparison.table import Row, Runs
from hfp.data import DataRequest, Dataset, Split, load_dataset, register_dataset
from hfp.methods import MethodContext, ServerState, register
from hfp.methods.fedmp import FedMP, WorkerCollector

ALPHAS = (1.0, 0.1, 10.0)
TABLE_1 = ("fedavg", "ca-hfp", "ca-hfp-paper", "prunefl", "dapperfl", "heterofl", "fedmp", "fedprox", "fedavgm")
PRUNING = ("ca-hfp", "ca-hfp-paper", "fedmp", "dapperfl")
RANDOM = {"warmup": 1_000_000}


@register
@dataclass(frozen=True)
class WithoutReconstruction(FedMP):
    """FedMP without its residual models: what a worker did not hold counts as zero in the mean."""

    name: ClassVar[str] = "fedmp-without"
    source: ClassVar[str] = "arXiv 2603.12591, table II"
    summary: ClassVar[str] = "fedmp whose means count zero for what a worker did not hold"

    def collect(self, context: MethodContext, state: ServerState) -> WorkerCollector:
        """Average as FedMP does, with zeros in place of the global weights."""
        zeros = {name: torch.zeros_like(weight) for name, weight in state.weights.items()}
        return WorkerCollector(self, context, dataclasses.replace(state, weights=zeros))


TABLE_2 = (
    Variant("curvature, with", {"method": "ca-hfp-paper"}),
    Variant("curvature, without", {"method": "ca-hfp-paper", "options": {"shrink": 1.0}}),
    Variant("random, with", {"method": "ca-hfp-paper", "options": RANDOM}),
    Variant("random, without", {"method": "ca-hfp-paper", "options": {**RANDOM, "shrink": 1.0}}),
    Variant("l1, with", {"method": "fedmp"}),
    Variant("l1, without", {"method": "fedmp-without"}),
    Variant("Δw, with", {"method": "delta-w"}),
)
ADDITIONS = tuple(
    Variant(name, PARTS[name])
    for name in (
        "ca-hfp",
        "ca-hfp-paper",
        "shrink 0",
        "shrink 0.4 in every round",
        "server momentum 0",
        "calibration 0",
        "fedavg",
        "fedavgm, calibration 0.05",
    )
)
UNEQUAL = tuple(Variant(name, PARTS[name]) for name in ("ca-hfp", "shrink 0.4 in every round", "fill"))
FIXED = (
    Variant("ca-hfp", PARTS["ca-hfp"]),
    Variant("fixed channels", {"method": "ca-hfp", "options": {"shrink": 1.0}}),
)
FIRST_ROUNDS = tuple(
    Variant(f"{method}{name}", {"method": method, **changed})
    for method in ("ca-hfp", "fedavg")
    for name, changed in (("", {}), (", longer first rounds", {"head_start": 10.0}))
)
TESTED = 2000

PROTOCOL: Mapping[str, Any] = {
    "learning_rate": 0.1,
    "momentum": 0.9,
    "augment": True,
    "amp": True,
    "channels_last": True,
    "head_start": 1.0,
}
"""Settings that the paper states, rounds that are all alike among them; bfloat16 and channels last are ours."""

SIZES: Mapping[str, Mapping[str, Any]] = {
    "minutes": {"train_images": 1000, "model": "resnet8", "rounds": 12, "evaluate": 2, "head_start": 1.0},
    "two-cores": {"train_images": 6000, "model": "resnet20", "rounds": 60, "batch_size": 32, "evaluate": 5, **PROTOCOL},
    "paper": {"train_images": None, "model": "vgg16", "rounds": 300, "batch_size": 128, "evaluate": 10, **PROTOCOL},
}
"""Settings of the runs by the name of a size."""


def _tested_in_part(name: str, request: DataRequest) -> Dataset:
    data = load_dataset(
        name,
        request.root,
        limit=request.limit,
        download=request.download,
        seed=request.seed,
        image_size=request.image_size,
        cache=request.cache,
    )
    chosen = torch.randperm(len(data.test), generator=torch.Generator().manual_seed(0))[:TESTED]
    return dataclasses.replace(data, name=request.name, test=Split(data.test.images[chosen], data.test.labels[chosen]))


DATASETS = ("digits", "fmnist", "cifar10", "cifar100", "imagefolder")
for _name in DATASETS:  # here and not in main, so that processes of their own know them too
    register_dataset(f"{_name}-{TESTED}", partial(_tested_in_part, _name))


@dataclass(frozen=True)
class Study:
    """One comparison, and what of it goes on the page: the pictures' name -> their SVG."""

    title: str
    about: str
    comparison: Comparison
    pictures: Callable[[Comparison, Runs, Sequence[Row]], dict[str, str]]


def studies(
    base: Mapping[str, Any],
    seeds: tuple[int, ...],
    methods: Sequence[str] = TABLE_1,
    alphas: tuple[float, ...] = ALPHAS,
    threads: int = 1,
) -> dict[str, Study]:
    """The paper's experiments, by the name of a study. `methods` are table I's, `alphas` those of tables I and II."""

    def compared(variants: tuple[Variant, ...], **axes: Any) -> Comparison:
        return Comparison(variants, base, seeds=seeds, threads=threads, **axes)

    return {
        "table-1": Study(
            "Table I and figure 3: methods at half of the channels",
            "Every client removes 50 % of its channels.",
            compared(variants_of(methods), alphas=alphas, ratios=(0.5,)),
            _along_rounds,
        ),
        "table-2": Study(
            "Table II: scores, with and without reconstruction",
            "Half of the channels are removed. “Without”: what a client did not hold counts as zero in the mean.",
            compared(TABLE_2, alphas=alphas, ratios=(0.5,)),
            lambda *_: {},
        ),
        "additions": Study(
            "What each addition of the default method is worth",
            "Half of the channels are removed. Rows change one thing of ca-hfp; the last is FedAvg with its additions. "
            "All clients hold the same channels here, so that filling and the mean over holders are one.",
            compared(ADDITIONS, alphas=alphas, ratios=(0.5,)),
            lambda *_: {},
        ),
        "fixed": Study(
            "Would one fixed small network do as well?",
            "All clients remove the same share of their channels. “Fixed channels” shrinks by 1: what nobody holds in "
            "the first round is zero from then on, so that all train one small network, with the momentum and the "
            "calibration of ca-hfp.",
            compared(FIXED, alphas=alphas, ratios=(0.5, 0.75, 0.9)),
            lambda *_: {},
        ),
        "first-rounds": Study(
            "Longer first rounds",
            "The first round trains ten epochs, and each later one 0.85 times as many as the one before, but at least "
            "one. Half of the channels are removed.",
            compared(FIRST_ROUNDS, alphas=alphas, ratios=(0.5,)),
            _along_rounds,
        ),
        "unequal": Study(
            "What two of the additions are worth where clients differ",
            "At rank 2 half of the clients remove 50 % of their channels and half 75 %, at rank 3 75 and 90 %.",
            compared(UNEQUAL, alphas=alphas, ranks=(2, 3)),
            lambda *_: {},
        ),
        "ratios": Study(
            "Figures 4 and 5: from ratio to ratio",
            "All clients remove the same share of their channels; alpha 1.",
            compared(variants_of(PRUNING), ratios=(0.0, 0.25, 0.5, 0.75, 0.9)),
            _over_sizes("Accuracy", "Megabytes moved", "Training"),
        ),
        "ranks": Study(
            "Figure 6: device ranks",
            "Half of the clients remove the first share, half the second: 0 and 25 %, 25 and 50, 50 and 75, 75 and 90; "
            "alpha 1. Time is simulated, on the `phone` profile.",
            compared(variants_of((*PRUNING, "fedavg")), ranks=(0, 1, 2, 3)),
            _over_sizes("Accuracy", "Time on the clients' devices"),
        ),
    }


def _along_rounds(comparison: Comparison, runs: Runs, made: Sequence[Row]) -> dict[str, str]:
    size = comparison.sizes[0][0]
    return {
        f"alpha {alpha:g}": round_chart(comparison, runs, alpha, size, "round", legend=True)
        for alpha in comparison.alphas
        if any(one == alpha for _, one, _ in runs)
    }


def _over_sizes(*titles: str) -> Callable[[Comparison, Runs, Sequence[Row]], dict[str, str]]:
    def draw(comparison: Comparison, _runs: Runs, made: Sequence[Row]) -> dict[str, str]:
        return {title: size_chart(comparison, made, comparison.alphas[0], title, legend=True) for title in titles}

    return draw
