"""The criteria in the tables, and by which rankings each is judged."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from criteria_study.networks import Batches
from hfp.importance import ScaledImportance, create, describe

ALL = ("layer", "global", "isomorphic", "measured")


@dataclass(frozen=True)
class Entry:
    """A criterion in the tables.

    ours: of this project, not torch-pruning's. rankings: of `hfp.prune`, tried at once. stepped: those also tried in
    ten steps. tuned: those also fine-tuned. signed: scores are estimates of a loss that may fall. The
    global and the isomorphic ranking compare scores divided by their group's mean, as torch-pruning's do by themselves;
    signed ones as they are.
    """

    criterion: str
    options: Mapping[str, Any] = field(default_factory=dict)
    ours: bool = True
    rankings: tuple[str, ...] = ()
    stepped: tuple[str, ...] = ()
    tuned: tuple[str, ...] = ()
    signed: bool = False


GLOBAL = ("global",)


def _everywhere(
    criterion: str, options: Mapping[str, Any] | None = None, *, ours: bool = True, signed: bool = False
) -> Entry:
    """A criterion that is tried in every way by the global ranking."""
    return Entry(criterion, options or {}, ours, rankings=GLOBAL, stepped=GLOBAL, tuned=GLOBAL, signed=signed)


ENTRIES = {
    "kronecker": Entry("kronecker", rankings=ALL, stepped=("measured",), tuned=("measured",)),
    "kronecker alone": Entry("kronecker", {"joint": False, "repaired": False}, rankings=GLOBAL),
    "group-fisher": Entry(
        "group-fisher", rankings=("global", "measured"), stepped=GLOBAL, tuned=("global", "measured")
    ),
    "group-fisher gauss-newton": Entry("group-fisher", {"fisher": "gauss-newton"}, rankings=GLOBAL),
    "group-fisher joint repaired": Entry(
        "group-fisher",
        {"fisher": "gauss-newton", "joint": True, "repaired": True},
        rankings=("measured",),
        tuned=("measured",),
    ),
    "group-fisher + signed": Entry("group-fisher", {"first_order": "signed"}, rankings=GLOBAL, signed=True),
    "group-kl": Entry("group-kl", rankings=("global", "measured"), stepped=GLOBAL, tuned=GLOBAL),
    "group-loss": _everywhere("group-loss", {"joint": False}, signed=True),
    "empirical-fisher": _everywhere("empirical-fisher"),
    "empirical-fisher taylor": _everywhere("empirical-fisher", {"form": "taylor"}, signed=True),
    "empirical-fisher paper": _everywhere("empirical-fisher", {"form": "paper"}, signed=True),
    "sampled-fisher": _everywhere("sampled-fisher"),
    "hutchinson": _everywhere("hutchinson", signed=True),
    "l1": Entry("l1", ours=False, rankings=ALL, stepped=GLOBAL, tuned=ALL),
    "l2": _everywhere("l2", ours=False),
    "lamp": _everywhere("lamp", ours=False),
    "fpgm": _everywhere("fpgm", ours=False),
    "bn-scale": _everywhere("bn-scale", ours=False),
    "taylor": _everywhere("taylor", ours=False),
    "hessian": _everywhere("hessian", ours=False),
    "random": _everywhere("random", ours=False),
}


def wins_for_us(name: str, ranking: str) -> bool:
    """Whether a line of a table is ours: the criterion or the ranking."""
    return is_ours(name) or ranking == "measured"


def is_ours(name: str) -> bool:
    """Whether a criterion is this project's; torch-pruning's recipes aren't, and have no entry."""
    return name in ENTRIES and ENTRIES[name].ours


def label(name: str) -> str:
    """A criterion's name in the tables."""
    return name if name not in ENTRIES or ENTRIES[name].ours else f"{name} (torch-pruning)"


def criterion_of(entry: Entry, model: nn.Module, data: Batches) -> Any:
    """The criterion, given the data if it wants any."""
    made = create(entry.criterion, **entry.options)
    if describe(entry.criterion).needs == "data":
        made.accumulate(model, data, functional.cross_entropy)
    return made


def scores_for(entry: Entry, ranking: str, model: nn.Module, data: Batches) -> Callable[[Any], Tensor]:
    """What `hfp.prune` ranks by, of a group."""
    criterion = criterion_of(entry, model, data)
    relative = ranking in ("global", "isomorphic") and not entry.signed
    scaled = ScaledImportance(criterion, normalise="mean") if relative else criterion
    return lambda group: scaled(group)
