"""The criteria in the tables, and by which rankings each is judged."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from criteria_study.networks import Batches
from hfp.importance import ScaledImportance, create, describe

ALL = ("layer", "global", "measured")


@dataclass(frozen=True)
class Entry:
    """A criterion in the tables.

    ours: of this project, not torch-pruning's. rankings: of `hfp.prune`, tried at once. stepped: those also tried in
    ten steps. tuned: those also fine-tuned. A global ranking compares scores divided by their group's
    mean, as torch-pruning's do by themselves.
    """

    criterion: str
    options: Mapping[str, Any] = field(default_factory=dict)
    ours: bool = True
    rankings: tuple[str, ...] = ()
    stepped: tuple[str, ...] = ()
    tuned: tuple[str, ...] = ()


ENTRIES = {
    "kronecker": Entry("kronecker", rankings=ALL, stepped=("measured",), tuned=("measured",)),
    "kronecker alone": Entry("kronecker", {"joint": False, "repaired": False}),
    "group-fisher": Entry("group-fisher", rankings=("global", "measured")),
    "group-fisher gauss-newton": Entry("group-fisher", {"fisher": "gauss-newton"}),
    "group-fisher joint repaired": Entry(
        "group-fisher", {"fisher": "gauss-newton", "joint": True, "repaired": True}, rankings=("measured",)
    ),
    "group-fisher + signed": Entry("group-fisher", {"first_order": "signed"}),
    "group-kl": Entry("group-kl"),
    "group-loss": Entry("group-loss", {"joint": False}),
    "empirical-fisher": Entry("empirical-fisher"),
    "empirical-fisher taylor": Entry("empirical-fisher", {"form": "taylor"}),
    "empirical-fisher paper": Entry("empirical-fisher", {"form": "paper"}),
    "sampled-fisher": Entry("sampled-fisher"),
    "hutchinson": Entry("hutchinson"),
    "l1": Entry("l1", ours=False, rankings=ALL, stepped=("global",), tuned=ALL),
    "l2": Entry("l2", ours=False),
    "lamp": Entry("lamp", ours=False, rankings=("global",), stepped=("global",), tuned=("global",)),
    "fpgm": Entry("fpgm", ours=False, rankings=("global",)),
    "bn-scale": Entry("bn-scale", ours=False, rankings=("global",), tuned=("global",)),
    "taylor": Entry("taylor", ours=False, rankings=("global",)),
    "hessian": Entry("hessian", ours=False, rankings=("global",), stepped=("global",)),
    "random": Entry("random", ours=False),
}


def wins_for_us(name: str, ranking: str) -> bool:
    """Whether a line of a table is ours: the criterion or the ranking."""
    return ENTRIES[name].ours or ranking == "measured"


def label(name: str) -> str:
    """A criterion's name in the tables."""
    return name if name not in ENTRIES or ENTRIES[name].ours else f"{name} (torch-pruning)"


def criterion_of(entry: Entry, model: nn.Module, data: Batches) -> Any:
    """The criterion, given the data if it wants any."""
    made = create(entry.criterion, **entry.options)
    if describe(entry.criterion).needs == "data":
        made.accumulate(model, data, functional.cross_entropy)
    return made


def scores_for(criterion: Any, ranking: str) -> Callable[[Any], Tensor]:
    """What `hfp.prune` ranks by: the scores themselves, or relative to their group's mean for the global ranking."""
    scaled = ScaledImportance(criterion, normalise="mean") if ranking == "global" else criterion
    return lambda group: scaled(group)
