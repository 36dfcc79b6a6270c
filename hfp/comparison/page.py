"""Make one HTML page of a comparison. It opens from disk, has no scripts, fetches nothing, and is light or dark."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from hfp.comparison.definition import Comparison
from hfp.comparison.table import LAST, Row, Runs, cells_of, curves, grouped, headings
from hfp.federation.experiment import Experiment
from hfp.methods import methods
from hfp.pages import page_from
from hfp.results.charts import LIGHT, STROKES, Line, line_chart, standalone, variables

_OF_A_METHOD = {"method", "options", "batch_norm"}
"""What variants may change and still see the same data, weights and batches."""


def page(comparison: Comparison, runs: Runs, rows: Sequence[Row]) -> str:
    """Make the whole page from the template `comparison/page.html.jinja`.

    Raises:
        InputError: matplotlib isn't installed.
    """
    return page_from(
        "comparison/page.html.jinja",
        title=_title(comparison),
        about=_about(comparison),
        variables=variables(),
        colours=len(LIGHT),
        strokes=len(STROKES),
        comparison=comparison,
        groups=grouped(rows),
        over_sizes=_shown(rows) if len(comparison.sizes) > 1 else [],
        headings=headings,
        cells_of=cells_of,
        lacking=partial(lacking, comparison),
        round_chart=partial(round_chart, comparison, runs),
        size_chart=partial(size_chart, comparison, rows),
        sources=_sources(comparison),
    )


def _title(comparison: Comparison) -> str:
    variants, methods = len(comparison.variants), len(_methods_of(comparison))
    these = f"{variants} variants of " if variants > methods else ""
    dataset = comparison.base.get("dataset", Experiment.dataset)
    return f"{these}{methods} federated method{'s' * (methods > 1)} on {dataset}"


def _about(comparison: Comparison) -> str:
    several = len(comparison.seeds) > 1
    spread = ", ± one standard deviation over seeds; bands span the seeds" if several else ""
    return (
        f"{_settings(comparison)}; seed{'s' * several} {', '.join(map(str, comparison.seeds))}. {_shared(comparison)} "
        f"Accuracy is the global model's on the whole test set: the mean of the last rounds, {LAST} at most{spread}. "
        "MB are the submodels of all rounds and one re-estimation of batch-norm statistics, where the policy has it."
    )


def _settings(comparison: Comparison) -> str:
    first = next(comparison.cells()).experiment
    data = "the whole training set" if first.train_images is None else f"{first.train_images:,} training images"
    begun = first.epochs_in(0)
    longer = f" ({begun} in the first round, then fewer)" if begun > first.epochs else ""
    return (
        f"{first.model}, {data} over {first.clients} clients, {first.rounds} "
        f"round{'s' * (first.rounds > 1)} of {first.epochs} local epoch{'s' * (first.epochs > 1)}{longer}, batches of "
        f"{first.batch_size}, learning rate {first.learning_rate:g}"
    )


def _shared(comparison: Comparison) -> str:
    """Say what the variants have in common: all of the data and training, or what the first of them has."""
    changed = {name for variant in comparison.variants for name in variant.changes} - _OF_A_METHOD
    if not changed:
        return "At one seed every method sees the same partition, initial weights and batches."
    return f"These are the first variant's settings; others may differ in {', '.join(sorted(changed))}."


def lacking(comparison: Comparison, group: Sequence[Row]) -> str:
    """Say of which variants some seeds have no result; empty where all have."""
    found, wanted = {row.variant: row.seeds for row in group}, len(comparison.seeds)
    fewer = [variant.name for variant in comparison.variants if found.get(variant.name, 0) < wanted]
    counts = ", ".join(f"{name} has {found.get(name, 0)} of {wanted} seeds" for name in fewer)
    return f"Runs without a result are left out: {counts}." if fewer else ""


def figures(comparison: Comparison, runs: Runs, rows: Sequence[Row]) -> dict[str, str]:
    """Make the page's charts as SVG files, each with its own legend, by file name.

    Raises:
        InputError: matplotlib isn't installed.
    """
    charts = {
        f"{comparison.dealt(alpha)}-{title}": size_chart(comparison, rows, alpha, title, legend=True)
        for alpha in comparison.alphas
        if len(comparison.sizes) > 1
        for title in _shown(rows)
    }
    for (alpha, size), group in grouped(rows).items():
        for against in ("round", "megabytes"):
            charts[f"{group[0].dealt}-{size}-{against}"] = round_chart(
                comparison, runs, alpha, size, against, legend=True
            )
    return {f"{file_name(name)}.svg": standalone(chart) for name, chart in charts.items()}


def file_name(title: str) -> str:
    """Return the title in lower case, with a dash for what is not a letter, a digit or a dot."""
    return "-".join("".join(c if c.isalnum() or c == "." else " " for c in title.lower()).split())


def _shown(rows: Sequence[Row]) -> list[str]:
    return [title for title, figure in FIGURES.items() if any(figure.of(row) is not None for row in rows)]


@dataclass(frozen=True)
class Figure:
    """A figure of a row that can be drawn: its axis' label, and whether the axis starts at 0."""

    label: str
    of: Callable[[Row], float | None]
    from_zero: bool = True


FIGURES: Mapping[str, Figure] = {
    "Accuracy": Figure("test accuracy, %", lambda row: row.accuracy.mean, from_zero=False),
    "Clients' own models on data like theirs": Figure(
        "accuracy, %", lambda row: None if row.own is None else row.own.mean, from_zero=False
    ),
    "Megabytes moved": Figure("megabytes, up and down", lambda row: row.megabytes_up + row.megabytes_down),
    "Training": Figure("1e9 multiply-accumulates", lambda row: row.gmacs),
    "Time on the clients' devices": Figure("simulated seconds", lambda row: row.seconds),
}
"""What can be drawn against what clients remove, by the chart's title."""


def size_chart(comparison: Comparison, rows: Sequence[Row], alpha: float, title: str, *, legend: bool = False) -> str:
    """Draw one of `FIGURES` for every variant at one alpha, against the sizes; ratios keep their proportions.

    Raises:
        InputError: matplotlib isn't installed.
    """
    figure = FIGURES[title]
    names = [name for name, _ in comparison.sizes]
    places = [100 * ratio for ratio in comparison.ratios] or range(len(names))
    lines = []
    for index, variant in enumerate(comparison.variants):
        mine = [row for row in rows if (row.alpha, row.variant) == (alpha, variant.name)]
        values = [(float(places[names.index(row.size)]), figure.of(row)) for row in mine]
        points = [(place, value) for place, value in values if value is not None]
        lines += [Line(variant.name, index, points)] if points else []
    across = "channels removed, %" if comparison.ratios else "what clients remove"
    shown = [f"{place:g}" for place in places] if comparison.ratios else names
    labels = {float(place): text for place, text in zip(places, shown, strict=True)}
    return line_chart(title, across, figure.label, lines, places=labels, zero=figure.from_zero, legend=legend)


def round_chart(
    comparison: Comparison, runs: Runs, alpha: float, size: str, against: str, *, legend: bool = False
) -> str:
    """Draw accuracy against "round" or "megabytes" for every variant at one alpha and size.

    Raises:
        InputError: matplotlib isn't installed.
    """
    label = {"round": "round", "megabytes": "megabytes moved, up and down"}[against]
    places = {variant.name: index for index, variant in enumerate(comparison.variants)}
    lines = [
        Line(curve.variant, places[curve.variant], curve.points)
        for curve in curves(comparison, runs, alpha, size, against)
    ]
    return line_chart(f"Accuracy against {against}", label, "test accuracy, %", lines, legend=legend)


def _methods_of(comparison: Comparison) -> set[str]:
    return {variant.changes.get("method", Experiment.method) for variant in comparison.variants}


def _sources(comparison: Comparison) -> str:
    used = _methods_of(comparison)
    return "; ".join(f"{method.name}: {method.source}" for method in methods() if method.name in used)
