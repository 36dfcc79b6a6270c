"""A comparison's figures: pure functions from results to rows, tables and curves."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from hfp.comparison.definition import Cell, Comparison
from hfp.federation.records import MEGABYTE, megabytes_in

LAST = 5
"""A run's accuracy is the mean over those of its last five rounds that were tested, since that of one round wobbles."""

SHARE_OF_BEST = 0.9

Result = Mapping[str, Any]


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation over seeds; a single value has none."""

    mean: float
    deviation: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Return mean and deviation of at least one value."""
        return cls(statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None)

    def __format__(self, form: str) -> str:
        """Write mean ± deviation, each in this form; a mean that rounds to zero has no minus sign."""
        mean = self.mean if float(format(self.mean, form)) else 0.0
        spread = "" if self.deviation is None else f" ± {self.deviation.__format__(form.lstrip('+'))}"
        return f"{mean:{form}}{spread}"


@dataclass(frozen=True)
class Reached:
    """How many of the runs reached the target, and the means over those of what it took."""

    runs: int
    rounds: float = math.nan
    megabytes: float = math.nan
    seconds: float = math.nan


@dataclass(frozen=True)
class Row:
    """What a variant reached at an alpha and a size, over `seeds` runs.

    `dealt` names the alpha, or the partition where that has none. `accuracy` is in percent. `difference` from the first
    variant is in points and paired by seed. `own` and `shared` are the accuracies of clients' own models and of the
    global one on data like theirs, where they were measured (`hfp.federation.evaluation`). Costs are one run's, as the
    mean over seeds: megabytes moved, 1e9 multiply-accumulates of training, simulated seconds on the clients' devices,
    and megabytes of the largest client's memory.
    """

    alpha: float
    dealt: str
    size: str
    variant: str
    seeds: int
    accuracy: Spread
    difference: Spread | None
    own: Spread | None
    shared: Spread | None
    megabytes_up: float
    megabytes_down: float
    gmacs: float
    seconds: float
    peak_megabytes: float
    target: float
    reached: Reached


@dataclass(frozen=True)
class Curve:
    """A variant's accuracy along a run: x (mean over seeds), mean accuracy, and least and greatest over seeds."""

    variant: str
    points: tuple[tuple[float, float, float, float], ...]


Runs = Mapping[tuple[str, float, str], Mapping[int, Result]]


def gather(
    comparison: Comparison, load: Callable[[Cell], Result | None]
) -> dict[tuple[str, float, str], dict[int, Result]]:
    """Load the results there are: (variant, alpha, size) -> seed -> result."""
    runs: dict[tuple[str, float, str], dict[int, Result]] = {}
    for cell in comparison.cells():
        result = load(cell)
        if result is not None:
            runs.setdefault((cell.variant, cell.alpha, cell.size), {})[cell.seed] = result
    return runs


def rows(comparison: Comparison, runs: Runs) -> list[Row]:
    """Make a row for every variant, alpha and size that has a result, in the order of the comparison."""
    made = []
    for alpha in comparison.alphas:
        dealt = comparison.dealt(alpha)
        for size, _ in comparison.sizes:
            group = {v.name: runs[v.name, alpha, size] for v in comparison.variants if (v.name, alpha, size) in runs}
            if not group:
                continue
            best = max(statistics.mean(map(final_accuracy, results.values())) for results in group.values())
            target = comparison.target if comparison.target is not None else SHARE_OF_BEST * best
            reference = group.get(comparison.variants[0].name, {})
            for variant, results in group.items():
                compared = None if variant == comparison.variants[0].name else _difference(results, reference)
                made.append(_row(alpha, dealt, size, variant, results, compared, target))
    return made


def final_accuracy(result: Result) -> float:
    """Return the mean accuracy of a run's last rounds in percent."""
    return statistics.mean(r["accuracy"] for r in result["history"][-LAST:] if r["accuracy"] is not None)


def curves(comparison: Comparison, runs: Runs, alpha: float, size: str, against: str) -> list[Curve]:
    """Return accuracy against "round" or "megabytes" moved so far, for every variant at one alpha and size."""
    made = []
    for variant in comparison.variants:
        results = list(runs.get((variant.name, alpha, size), {}).values())
        if not results:
            continue
        across = [_across(result["history"], against) for result in results]
        heights = [[record["accuracy"] for record in result["history"]] for result in results]
        points = [
            (statistics.mean(x), statistics.mean(y), min(y), max(y))
            for x, y in zip(zip(*across, strict=True), zip(*heights, strict=True), strict=True)
            if None not in y
        ]
        made.append(Curve(variant.name, tuple(points)))
    return made


def _across(history: Sequence[Mapping[str, Any]], against: str) -> list[float]:
    return megabytes_in(history) if against == "megabytes" else [record["round"] for record in history]


def _difference(results: Mapping[int, Result], reference: Mapping[int, Result]) -> Spread | None:
    shared = [seed for seed in results if seed in reference]
    paired = [final_accuracy(results[seed]) - final_accuracy(reference[seed]) for seed in shared]
    return Spread.of(paired) if paired else None


def _row(
    alpha: float,
    dealt: str,
    size: str,
    variant: str,
    results: Mapping[int, Result],
    difference: Spread | None,
    target: float,
) -> Row:
    def mean(figure: str, unit: float) -> float:
        return statistics.mean(result[figure] for result in results.values()) / unit

    return Row(
        alpha=alpha,
        dealt=dealt,
        size=size,
        variant=variant,
        seeds=len(results),
        accuracy=Spread.of([final_accuracy(result) for result in results.values()]),
        difference=difference,
        own=_personal(list(results.values()), "own"),
        shared=_personal(list(results.values()), "shared"),
        megabytes_up=mean("bytes_up", MEGABYTE),
        megabytes_down=mean("bytes_down", MEGABYTE),
        gmacs=mean("training_macs", 1e9),
        seconds=mean("device_seconds", 1.0),
        peak_megabytes=mean("peak_bytes", MEGABYTE),
        target=target,
        reached=_reached(list(results.values()), target),
    )


def _personal(results: Sequence[Result], which: str) -> Spread | None:
    """Return a figure of the last round that measured clients' own models; None unless all runs have one."""
    last = [[r["personal"][which] for r in result["history"] if r.get("personal")][-1:] for result in results]
    return Spread.of([value for values in last for value in values]) if all(last) else None


def _reached(results: Sequence[Result], target: float) -> Reached:
    first = [
        (result, next((i for i, record in enumerate(result["history"]) if (record["accuracy"] or 0) >= target), None))
        for result in results
    ]
    there = [(result, index) for result, index in first if index is not None]
    if not there:
        return Reached(0)
    return Reached(
        runs=len(there),
        rounds=statistics.mean(result["history"][index]["round"] for result, index in there),
        megabytes=statistics.mean(megabytes_in(result["history"])[index] for result, index in there),
        seconds=statistics.mean(
            sum(record["device_seconds"] for record in result["history"][: index + 1]) for result, index in there
        ),
    )


def headings(made: Sequence[Row]) -> tuple[str, ...]:
    """Return the headings of the columns that `cells_of` fills."""
    personal = ("own models, %", "global, same data, %") if _with_personal(made) else ()
    costs = ("MB up", "MB down", "GMACs", "device s", "memory, MB", "to target")
    return ("variant", "accuracy, %", "difference", *personal, *costs)


def _with_personal(made: Sequence[Row]) -> bool:
    return any(row.own is not None for row in made)


def cells_of(row: Row, made: Sequence[Row]) -> tuple[str, ...]:
    """Return a row's texts under the `headings` of the rows `made`, of which it is one."""
    reached = row.reached
    to_target = "never"
    if reached.runs:
        to_target = f"{reached.rounds:.0f} rounds, {reached.megabytes:,.1f} MB, {reached.seconds:,.1f} s"
    if 0 < reached.runs < row.seeds:
        to_target += f" ({reached.runs} of {row.seeds} seeds)"
    return (
        row.variant,
        f"{row.accuracy:.2f}",
        "" if row.difference is None else f"{row.difference:+.2f}",
        *(("" if part is None else f"{part:.2f}" for part in (row.own, row.shared)) if _with_personal(made) else ()),
        f"{row.megabytes_up:,.1f}",
        f"{row.megabytes_down:,.1f}",
        f"{row.gmacs:,.1f}",
        f"{row.seconds:,.1f}",
        f"{row.peak_megabytes:,.1f}",
        to_target,
    )


def tables(made: Sequence[Row]) -> list[Table]:
    """Make a table for the terminal, 80 columns wide, for every alpha and size."""
    personal = _with_personal(made)
    shown: list[Table] = []
    groups = grouped(made)
    last = list(groups.values())[-1] if groups else None
    for group in groups.values():
        target = group[0].target
        caption = (
            f"accuracy: mean of the last rounds, {LAST} at most; MB: up and down; device s: simulated, on the clients"
        )
        if personal:
            caption += "; own, %: clients' own models on data like theirs"
        table = Table(
            title=_title(group),
            caption=f"{caption}; the last column: rounds until that is reached" if group is last else None,
            title_justify="left",
            caption_justify="left",
            box=box.SIMPLE_HEAD,
            show_edge=False,
            padding=(0, 1, 0, 0),
        )
        own = ("own, %",) if personal else ()
        table.add_column("variant", overflow="fold")
        for heading in ("accuracy, %", "difference", *own, "MB", "GMACs", "device\ns", f"to\n{target:.1f} %"):
            table.add_column(heading, justify="right", no_wrap=True)
        for row in group:
            table.add_row(*map(Text, _short(row, personal)))
        shown.append(table)
    return shown


def _short(row: Row, personal: bool) -> tuple[str, ...]:
    """Return the texts of a row in the terminal."""
    name, accuracy, difference, *_ = cells_of(row, [row])
    own = ("" if row.own is None else f"{row.own.mean:.1f}",) if personal else ()
    costs = (f"{cost:,.1f}" for cost in (row.megabytes_up + row.megabytes_down, row.gmacs, row.seconds))
    return (name, accuracy, difference, *own, *costs, f"{row.reached.rounds:.0f}" if row.reached.runs else "never")


def _title(group: Sequence[Row]) -> str:
    return f"{group[0].size}, {group[0].dealt}"


def grouped(made: Sequence[Row]) -> dict[tuple[float, str], list[Row]]:
    """Group the rows by alpha and size."""
    groups: dict[tuple[float, str], list[Row]] = {}
    for row in made:
        groups.setdefault((row.alpha, row.size), []).append(row)
    return groups


def markdown(made: Sequence[Row]) -> str:
    """Write all rows as Markdown tables under headings."""
    lines: list[str] = []
    for group in grouped(made).values():
        lines += [f"## {_title(group)}", "", f"Target {group[0].target:.1f} %.", ""]
        head = headings(made)
        lines += ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
        lines += ["| " + " | ".join(map(_as_markdown, cells_of(row, made))) + " |" for row in group] + [""]
    return "\n".join(lines)


def _as_markdown(text: str) -> str:
    """Write a text so that it stays in its cell and is no markup."""
    return " ".join(escape(text, quote=False).split()).replace("|", "\\|")


def plain(made: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the rows as plain values for JSON; what was never reached is null."""
    return [
        {
            "alpha": row.alpha,
            "size": row.size,
            "variant": row.variant,
            "seeds": row.seeds,
            "accuracy": row.accuracy.mean,
            "accuracy_spread": row.accuracy.deviation,
            "difference": None if row.difference is None else row.difference.mean,
            "difference_spread": None if row.difference is None else row.difference.deviation,
            "own": None if row.own is None else row.own.mean,
            "own_spread": None if row.own is None else row.own.deviation,
            "shared": None if row.shared is None else row.shared.mean,
            "shared_spread": None if row.shared is None else row.shared.deviation,
            "megabytes_up": row.megabytes_up,
            "megabytes_down": row.megabytes_down,
            "training_gmacs": row.gmacs,
            "device_seconds": row.seconds,
            "peak_megabytes": row.peak_megabytes,
            "target": row.target,
            "reached": row.reached.runs,
            "rounds_to_target": row.reached.rounds if row.reached.runs else None,
            "megabytes_to_target": row.reached.megabytes if row.reached.runs else None,
            "device_seconds_to_target": row.reached.seconds if row.reached.runs else None,
        }
        for row in made
    ]
