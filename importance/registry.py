"""Criteria by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import torch_pruning as tp

from hfp.importance.bases.scaled import ScaledImportance
from hfp.importance.errors import CriterionError

NEEDS = ("nothing", "data", "variation")


@dataclass(frozen=True)
class Criterion:
    """What there is to know about a criterion before making one.

    name: what `create` takes. source: the paper (or project) it is from.
    needs: "nothing" (weights alone), "data" (batches and a loss first), "variation" (a server's `Variation`).
    """

    name: str
    source: str
    needs: str


_ENTRIES: dict[str, tuple[Criterion, Callable[..., Any]]] = {}


def register(name: str, factory: Callable[..., Any], *, source: str, needs: str = "nothing") -> None:
    """Make `create(name, **options)` call `factory(**options)`, which returns a torch-pruning Importance.

    Raises:
        CriterionError: a name that is taken, or needs that aren't one of "nothing", "data", "variation".
    """
    if name in _ENTRIES:
        raise CriterionError(f"criterion {name!r} is registered already ({_ENTRIES[name][0].source})")
    if needs not in NEEDS:
        raise CriterionError(f"needs is one of {', '.join(NEEDS)}, not {needs!r}")
    _ENTRIES[name] = Criterion(name, source, needs), factory


def names() -> tuple[str, ...]:
    """The registered criteria, in alphabetical order."""
    return tuple(sorted(_ENTRIES))


def describe(name: str) -> Criterion:
    """Source and needs of a criterion.

    Raises:
        CriterionError: an unknown name; the message has the nearest known ones.
    """
    return _entry(name)[0]


def create(name: str, **options: Any) -> tp.importance.Importance:
    """A new criterion.

    options: the criterion's own, and for any of them `normalise` and `power`, which wrap it in `ScaledImportance`.

    Raises:
        CriterionError: an unknown name, or options that the criterion doesn't take.
    """
    factory = _entry(name)[1]
    scale = {key: options.pop(key) for key in ("normalise", "power") if key in options}
    try:
        made = factory(**options)
        return ScaledImportance(made, **scale) if scale else made
    except TypeError as error:
        raise CriterionError(f"criterion {name!r} can't be made with options {sorted(options)}: {error}") from error


def _entry(name: str) -> tuple[Criterion, Callable[..., Any]]:
    if name not in _ENTRIES:
        near = get_close_matches(name, _ENTRIES, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(names())}"
        raise CriterionError(f"unknown criterion {name!r}; {hint}")
    return _ENTRIES[name]
