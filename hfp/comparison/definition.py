"""What a comparison is made of: variants of one experiment, over seeds, data skews and client sizes."""

from __future__ import annotations

import dataclasses
import json
import numbers
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from hfp.errors import InputError, unknown
from hfp.federation.experiment import Experiment
from hfp.methods import create_method, methods

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

AXES = ("method", "seed", "alpha", "rank", "ratio", "batch_norm", "options")
"""Fields of `Experiment` that a comparison sets itself."""


@dataclass(frozen=True)
class Variant:
    """One line of a comparison: fields of `Experiment` that it changes."""

    name: str
    changes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Cell:
    """One run of a comparison, and where it belongs. `size` names what clients remove, e.g. ``rank 2``."""

    variant: str
    seed: int
    alpha: float
    size: str
    experiment: Experiment


@dataclass(frozen=True)
class Comparison:
    """Variants x seeds x alphas x sizes; every experiment in it is checked when it is made.

    At one seed all variants see the same partition, initial weights and batches. `base` are the fields of `Experiment`
    that all runs share; sizes are `ranks`, or `ratios` when there are any. `target` is the accuracy (percent) that
    costs are counted to; without it 90 % of the best variant's, for every alpha and size.

    Raises:
        InputError: no variant or seed, two variants of one name, or a field or value that `Experiment` refuses.
    """

    variants: tuple[Variant, ...]
    base: Mapping[str, Any] = field(default_factory=dict)
    seeds: tuple[int, ...] = (0, 1, 2)
    alphas: tuple[float, ...] = (Experiment.alpha,)
    ranks: tuple[int, ...] = (Experiment.rank,)
    ratios: tuple[float, ...] = ()
    target: float | None = None

    def __post_init__(self) -> None:
        """Check everything before any run starts."""
        for name in ("variants", "seeds", "alphas", "ranks"):
            if not getattr(self, name):
                raise InputError(f"a comparison needs at least one of its {name}")
        names = [variant.name for variant in self.variants]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise InputError(f"two variants are called {twice!r}; give each a name of its own")
        if self.target is not None and not 0 < self.target <= 100:
            raise InputError(f"target must be an accuracy in (0, 100]; found {self.target}")
        object.__setattr__(self, "base", MappingProxyType(dict(self.base)))
        for where, changes in (("base", self.base), *((v.name, v.changes) for v in self.variants)):
            _check_fields(where, changes)
        for _ in self.cells():
            pass

    def cells(self) -> Iterator[Cell]:
        """Every run, seed by seed, so that a comparison stopped half way has all variants at some seeds.

        A method that ratios make no difference to has the same experiment at all sizes.
        """
        for seed in self.seeds:
            for alpha in self.alphas:
                for size, changes in self.sizes:
                    for variant in self.variants:
                        fields = {**self.base, "seed": seed, "alpha": alpha, **changes, **variant.changes}
                        yield Cell(variant.name, seed, alpha, size, _experiment(fields))

    @property
    def sizes(self) -> tuple[tuple[str, dict[str, Any]], ...]:
        """What clients remove: a name, and the fields that say so."""
        if self.ratios:
            return tuple((f"ratio {ratio:.0%}", {"ratio": ratio}) for ratio in self.ratios)
        if "budget" in self.base:
            return (("budget", {}),)
        return tuple((f"rank {rank}", {"rank": rank}) for rank in self.ranks)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as written to a comparison's folder; `comparison_from` gives the comparison back."""
        return {
            "compare": {
                "seeds": list(self.seeds),
                "alphas": list(self.alphas),
                **({"ratios": list(self.ratios)} if self.ratios else {"ranks": list(self.ranks)}),
                **({} if self.target is None else {"target": self.target}),
            },
            "experiment": dict(self.base),
            "variant": [{"name": variant.name, **variant.changes} for variant in self.variants],
        }


def _experiment(fields: dict[str, Any]) -> Experiment:
    experiment = Experiment(**fields)
    if experiment.budget is not None or create_method(experiment.method, **experiment.options).uses_ratios:
        return experiment
    return dataclasses.replace(experiment, rank=Experiment.rank, ratio=0.0)


def variants_of(
    names: Sequence[str],
    options: Mapping[str, Mapping[str, Any]] | None = None,
    batch_norms: Sequence[str] = (),
) -> tuple[Variant, ...]:
    """A variant for every method, with options by method, and for every batch-norm policy when there are several.

    Raises:
        InputError: options for a method that isn't compared.
    """
    options = options or {}
    for name in options:
        if name not in names:
            raise unknown("method with options", name, names)
    policies: Sequence[str | None] = batch_norms or (None,)
    return tuple(
        Variant(
            name if len(policies) == 1 else f"{name}, {policy}",
            {
                "method": name,
                **({"options": dict(options[name])} if name in options else {}),
                **({} if policy is None else {"batch_norm": policy}),
            },
        )
        for name in names
        for policy in policies
    )


def comparison_from(document: Mapping[str, Any], **over: Any) -> Comparison:
    """The comparison that a TOML or JSON document describes; `over` are fields of `Comparison` that go first.

    Tables: ``compare`` (methods, seeds as a list or a number of them, alphas, ranks or ratios, batch_norms, target),
    ``experiment`` (fields of `Experiment`), ``options.METHOD``, and ``variant`` (a list: name, fields of `Experiment`).

    Raises:
        InputError: an unknown table or key, or what `Comparison` refuses.
    """
    for name, value in document.items():
        if name != "variant" and not isinstance(value, Mapping):
            raise InputError(f"{name} is a table of a comparison, [{name}]; found {value!r}")
    _check_known("table of a comparison", document, ("compare", "experiment", "options", "variant"))
    axes = dict(document.get("compare", {}))
    fields = ("seeds", "alphas", "ranks", "ratios", "target")
    _check_known("key of [compare]", axes, ("methods", "batch_norms", *fields))
    for name, value in axes.items():
        _check_axis(name, value)
    given = [Variant(str(entry.get("name", "")), _without_name(entry)) for entry in document.get("variant", ())]
    names = axes.get("methods", [] if given else [method.name for method in methods()])
    made = variants_of(names, document.get("options"), axes.get("batch_norms", ()))
    if "ranks" in axes and "ratios" in axes:
        raise InputError("a comparison has ranks or ratios, not both")
    settings: dict[str, Any] = {"base": document.get("experiment", {}), "variants": (*made, *given)}
    settings.update({name: axes[name] for name in fields if name in axes})
    settings.update(over)
    if isinstance(settings.get("seeds"), int):
        settings["seeds"] = range(settings["seeds"])
    frozen: dict[str, Any] = {n: tuple(v) if isinstance(v, (list, range)) else v for n, v in settings.items()}
    return Comparison(**frozen)


def read_comparison(path: Path) -> dict[str, Any]:
    """The document in a TOML file, or in a comparison folder's JSON file.

    Raises:
        InputError: the file can't be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
        return json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except OSError as error:
        raise InputError(f"{path} can't be read: {error.strerror}") from error
    except (json.JSONDecodeError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not what its name says: {error}") from error


_AXIS_KINDS: Mapping[str, tuple[type, str]] = MappingProxyType(
    {"methods": (str, "names"), "batch_norms": (str, "names"), "seeds": (int, "whole numbers"),
     "alphas": (numbers.Real, "numbers"), "ranks": (int, "whole numbers"), "ratios": (numbers.Real, "numbers")}
)  # fmt: skip


def _check_axis(name: str, value: Any) -> None:
    if name == "target":
        fits, words = isinstance(value, numbers.Real), "a number"
    elif name == "seeds" and isinstance(value, int):
        fits, words = True, ""
    else:
        kind, kinds = _AXIS_KINDS[name]
        fits, words = isinstance(value, list) and all(isinstance(part, kind) for part in value), f"a list of {kinds}"
    if not fits:
        raise InputError(f"{name} of a comparison must be {words}; found {value!r}")


def _without_name(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in entry.items() if name != "name"}


def _check_fields(where: str, changes: Mapping[str, Any]) -> None:
    if not where:
        raise InputError("a variant needs a name")
    known = [entry.name for entry in dataclasses.fields(Experiment)]
    _check_known(f"field of an experiment (in {where})", changes, known)
    axes = AXES if where == "base" else ("seed",)
    for name in axes:
        if name in changes:
            raise InputError(f"{name} is an axis of the comparison; don't set it in {where}")


def _check_known(kind: str, given: Mapping[str, Any], known: Sequence[str]) -> None:
    for name in given:
        if name not in known:
            raise unknown(kind, name, known)
