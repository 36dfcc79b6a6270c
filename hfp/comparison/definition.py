"""What a comparison is made of: variants of one experiment, over seeds, data skews and client sizes."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product, starmap
from pathlib import Path
from typing import Any

from hfp.errors import InputError, repeated, unknown
from hfp.federation.experiment import MOST_THREADS, Experiment
from hfp.methods.interface.registry import create_method, method_names
from hfp.settings import EITHER, SEVERAL, Setting, check_settings, field_of, setting, settings_of, shown

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

AXES = ("method", "seed", "alpha", "rank", "ratio", "batch_norm", "options")
"""Fields of `Experiment` that a comparison sets itself."""
AXIS_LABEL = "{} of a comparison"
MOST_SEEDS = 1_000


def _axis(name: str, default: Any, help: str) -> Any:
    """Declare a field that lists values of a field of `Experiment`."""
    like = settings_of(Experiment)[name]
    return field_of(replace(like, help=help, shape=SEVERAL, optional=False, aliases=()), default)


@dataclass(frozen=True)
class Variant:
    """One line of a comparison.

    Args:
        name: what tables and curves call it.
        changes: the fields of `Experiment` that it changes.
    """

    name: str
    changes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Cell:
    """One run of a comparison, and where it belongs.

    Args:
        variant: the name of its variant.
        seed: its seed.
        alpha: its Dirichlet concentration.
        size: what clients remove, such as ``rank 2``.
        experiment: what is run.
    """

    variant: str
    seed: int
    alpha: float
    size: str
    experiment: Experiment

    def __str__(self) -> str:
        return f"{self.variant}, seed {self.seed}, {self.size}, {self.experiment.dealt}"


@dataclass(frozen=True)
class Comparison:
    """All combinations of variants, seeds, alphas and sizes. Every experiment is checked when the comparison is made.

    At one seed all variants see the same partition, initial weights and batches.

    Args:
        variants: the lines of the comparison; the others are compared with the first.
        base: the fields of `Experiment` that all runs share.
        seeds: the runs' seeds.
        alphas: the Dirichlet concentrations.
        ranks: the sizes of clients, as ranks of the paper.
        ratios: the sizes of clients, as shares of channels removed; they replace the ranks.
        target: the accuracy in percent that costs are counted to; by default 90 % of the best variant's at each alpha
            and size.
        threads: how many of the processor's threads each run computes with.

    Raises:
        InputError: there is no variant or seed, two variants have one name, a value is given twice, or `Experiment`
            refuses a field or value.
    """

    variants: tuple[Variant, ...]
    base: Mapping[str, Any] = field(default_factory=dict)
    seeds: tuple[int, ...] = _axis("seed", (0, 1, 2), "The runs have these seeds; a number alone counts them from 0.")
    alphas: tuple[float, ...] = _axis("alpha", (1.0,), "The Dirichlet partition has these concentrations.")
    ranks: tuple[int, ...] = _axis("rank", (1,), "The two halves of the clients remove the shares of these ranks.")
    ratios: tuple[float, ...] = _axis("ratio", (), "Every client removes these shares, in place of the ranks.")
    target: float | None = setting(
        None,
        "Costs are counted up to this accuracy; by default to 90 % of the best variant's.",
        kind=float,
        within="(0, 100]",
        unit="percent",
    )
    threads: int = setting(
        1,
        "Each run computes with this many threads of the processor; their number changes a result's last digits.",
        within=f"[1, {MOST_THREADS}]",
        unit="threads",
    )

    def __post_init__(self) -> None:
        """Check everything before any run starts."""
        check_settings(self, AXIS_LABEL)
        for name in ("variants", "seeds", "alphas", "ranks"):
            if not getattr(self, name):
                raise InputError(f"a comparison needs at least one of its {name}")
        if len(self.seeds) > MOST_SEEDS:
            raise InputError(f"a comparison has at most {MOST_SEEDS:,} seeds; found {len(self.seeds):,}")
        twice = repeated([variant.name for variant in self.variants])
        if twice is not None:
            raise InputError(f"two variants are called {twice!r}; give each a name of its own")
        shown_as = {"seeds": map(str, self.seeds), "alphas": (f"{alpha:g}" for alpha in self.alphas)}
        for what, values in {**shown_as, "sizes": (name for name, _ in self.sizes)}.items():
            _check_once(what, list(values))
        for where, changes in (("base", self.base), *((v.name, v.changes) for v in self.variants)):
            _check_fields(where, changes)
        _check_used(self)
        for _ in self.cells():
            pass

    def cells(self) -> Iterator[Cell]:
        """List every run, seed by seed, so that a comparison stopped half way has all variants at some seeds.

        A method that ratios make no difference to has the same experiment at all sizes.
        """
        return starmap(self._cell, product(self.seeds, self.alphas, self.sizes, self.variants))

    def dealt(self, alpha: float) -> str:
        """How the first variant's data are dealt out at an alpha, in a few words."""
        return self._cell(self.seeds[0], alpha, self.sizes[0], self.variants[0]).experiment.dealt

    def _cell(self, seed: int, alpha: float, size: tuple[str, dict[str, Any]], variant: Variant) -> Cell:
        name, changes = size
        own = {**self.base, **changes, **variant.changes}
        axes = {"seed": seed, "alpha": alpha} if _has_alpha(own) else {"seed": seed}
        return Cell(variant.name, seed, alpha, name, _experiment({**axes, **own}))

    @property
    def sizes(self) -> tuple[tuple[str, dict[str, Any]], ...]:
        """The sizes of clients, each a name and the fields of `Experiment` that it stands for."""
        if self.ratios:
            return tuple((f"ratio {100 * ratio:g}%", {"ratio": ratio}) for ratio in self.ratios)
        if "budget" in self.base:
            return (("budget", {}),)
        return tuple((f"rank {rank}", {"rank": rank}) for rank in self.ranks)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, as written to a comparison's folder; `comparison_from` reads them."""
        return {
            "compare": {
                "seeds": list(self.seeds),
                "alphas": list(self.alphas),
                **({"ratios": list(self.ratios)} if self.ratios else {"ranks": list(self.ranks)}),
                **({} if self.target is None else {"target": self.target}),
                "threads": self.threads,
            },
            "experiment": dict(self.base),
            "variant": [{"name": variant.name, **variant.changes} for variant in self.variants],
        }


def _experiment(fields: dict[str, Any]) -> Experiment:
    experiment = Experiment(**fields)
    for name in ("dataset", "model"):
        if not isinstance(getattr(experiment, name), str):
            raise InputError(
                f"a comparison's {name} must be a name, by which its results are known again: use module:factory for a "
                "model, hfp.data.register_dataset for data"
            )
    if experiment.budget is not None or create_method(experiment.method, **experiment.options).uses_ratios:
        return experiment
    return dataclasses.replace(experiment, rank=Experiment.rank, ratio=0.0)


def variants_of(
    names: Sequence[str],
    options: Mapping[str, Mapping[str, Any]] | None = None,
    batch_norms: Sequence[str] = (),
) -> tuple[Variant, ...]:
    """Make a variant for every method, and for every batch-norm policy where there are several.

    Raises:
        InputError: options for a method that isn't compared, or a method or policy that is given twice.
    """
    options = options or {}
    _check_once("methods", names)
    _check_once("batch_norms", batch_norms)
    for name in options:
        if not names:
            raise InputError(f"options of {name} are given, but a [[variant]] has options of its own; put them there")
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
    """Make the comparison that a TOML or JSON document describes; the fields `over` replace the document's.

    Tables: ``compare`` (methods, seeds as a list or a number of them, alphas, ranks or ratios, batch_norms, target),
    ``experiment`` (fields of `Experiment`), ``options.METHOD``, and ``variant`` (a list: name, fields of `Experiment`).

    Raises:
        InputError: an unknown table or key, or what `Comparison` refuses.
    """
    _check_tables(document)
    axes = checked_axes(document.get("compare", {}))
    given = variants_in(document.get("variant", ()))
    names = axes.pop("methods", () if given else method_names())
    made = variants_of(names, document.get("options"), axes.pop("batch_norms", ()))
    if "ranks" in axes and "ratios" in axes:
        raise InputError("a comparison has ranks or ratios, not both")
    return Comparison(**{"base": document.get("experiment", {}), "variants": (*made, *given), **axes, **over})


def axes() -> dict[str, Setting]:
    """Return what the table ``compare`` of a document may hold, by name."""
    own = settings_of(Comparison)
    listed = {
        "methods": replace(
            settings_of(Experiment)["method"],
            help="These methods are compared, and the others' accuracy is told by its difference from the first's; "
            "by default all methods.",
        ),
        "batch_norms": replace(
            settings_of(Experiment)["batch_norm"],
            help="Every method is run under each of these policies for batch-norm statistics.",
        ),
    }
    lists = {name: replace(one, name=name, default=None, shape=SEVERAL, aliases=()) for name, one in listed.items()}
    seeds = replace(own["seeds"], shape=EITHER)
    others = {name: one for name, one in own.items() if name not in ("variants", "base", "seeds")}
    return {**lists, "seeds": seeds, **others}


def checked_axes(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a table ``compare`` in normal form.

    Raises:
        InputError: an unknown key, or a value of another kind, outside its range or unknown.
    """
    known = axes()
    _check_known("key of [compare]", given, known)
    found = {name: known[name].checked(value, AXIS_LABEL.format(name)) for name, value in given.items()}
    if found.get("seeds") == 0:
        raise InputError("a comparison needs at least one of its seeds; found 0, which is their number")
    if isinstance(found.get("seeds"), int):
        found["seeds"] = tuple(range(min(found["seeds"], MOST_SEEDS + 1)))
    return found


def variants_in(entries: Any) -> tuple[Variant, ...]:
    """Make the variants that a document's list of tables describes.

    Raises:
        InputError: it is no list of tables, or a name is no text.
    """
    if not isinstance(entries, (list, tuple)) or not all(isinstance(entry, Mapping) for entry in entries):
        raise InputError(f"variant must be a list of tables, [[variant]]; found {shown(entries)}")
    for entry in entries:
        if not isinstance(entry.get("name"), str) or not entry["name"].strip():
            raise InputError(f"a variant needs a name; found {shown(entry.get('name'))}")
    return tuple(Variant(entry["name"], _without_name(entry)) for entry in entries)


def read_comparison(path: Path) -> dict[str, Any]:
    """Read the document in a TOML file, or in a comparison folder's JSON file.

    Raises:
        InputError: the file can't be read, or something in it is no table.
    """
    try:
        text = path.read_text(encoding="utf-8")
        document = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
        _check_values(document)
    except OSError as error:
        raise InputError(f"{path} can't be read: {error.strerror}") from error
    except ValueError as error:  # not of TOML or JSON, not UTF-8, or a number with more digits than Python reads
        raise InputError(f"{path} is not what its name says: {error}") from error
    except RecursionError as error:
        raise InputError(f"{path} nests tables or lists too deeply; a comparison needs three levels") from error
    if not isinstance(document, dict):
        raise InputError(f"{path} must hold a table of tables; found {shown(document)}")
    _check_tables(document)
    return document


def _check_tables(document: Mapping[str, Any]) -> None:
    _check_known("table of a comparison", document, ("compare", "experiment", "options", "variant"))
    for name, value in document.items():
        if name != "variant" and not isinstance(value, Mapping):
            raise InputError(f"{name} is a table of a comparison, [{name}]; found {shown(value)}")
    for name, own in document.get("options", {}).items():
        if not isinstance(own, Mapping):
            raise InputError(f"options of {name} must be a table, [options.{name}]; found {shown(own)}")


def _check_values(value: Any) -> None:
    """Raise ValueError at a whole number of more than 64 bits, which TOML forbids, and at a null character."""
    if isinstance(value, str) and "\0" in value:
        raise ValueError(f"no name has a null character; found {shown(value)}")
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ValueError(f"a whole number has at most 64 bits; found {shown(value)}")
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check_values(inner)


def _without_name(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in entry.items() if name != "name"}


def _check_once(what: str, names: Sequence[str]) -> None:
    if (twice := repeated(names)) is not None:
        raise InputError(f"a comparison has each of its {what} once; found {twice} twice")


def _check_fields(where: str, changes: Mapping[str, Any]) -> None:
    if not where:
        raise InputError("a variant needs a name")
    known = [entry.name for entry in dataclasses.fields(Experiment)]
    _check_known(f"field of an experiment (in {where})", changes, known)
    for name in AXES if where == "base" else ("seed",):
        if name in changes:
            raise InputError(f"{name} is an axis of the comparison; don't set it in {where}")
    if changes.get("patience"):
        raise InputError(f"patience can't be set in {where}: the runs of a comparison have as many rounds each")


def _check_used(comparison: Comparison) -> None:
    """Refuse values of an axis that makes no difference to any run."""
    base, ranks, alphas = comparison.base, comparison.ranks, comparison.alphas
    if "budget" in base and len(ranks) > 1:
        found = ", ".join(map(str, ranks))
        raise InputError(f"ranks must be left out with a budget, which is the size of all clients; found {found}")
    for variant in comparison.variants:
        if comparison.ratios and "rank" in variant.changes:
            found = variant.changes["rank"]
            raise InputError(f"rank must be left out in {variant.name}, since ratios replace ranks; found {found}")
    if alphas != Comparison.alphas and not any(_has_alpha({**base, **one.changes}) for one in comparison.variants):
        found = ", ".join(f"{alpha:g}" for alpha in alphas)
        raise InputError(
            f"alphas must be left out without the Dirichlet partition, which alone has them; found {found}"
        )


def _has_alpha(fields: Mapping[str, Any]) -> bool:
    return fields.get("partition", Experiment.partition) == "dirichlet" and fields.get("clients_file") is None


def _check_known(kind: str, given: Mapping[str, Any], known: Collection[str]) -> None:
    for name in given:
        if name not in known:
            raise unknown(kind, name, known)
