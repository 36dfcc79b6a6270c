"""A comparison as one HTML page that opens from disk: no scripts, nothing fetched, light and dark."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape

from hfp.comparison.charts import LIGHT, Line, line_chart, standalone, variables
from hfp.comparison.definition import Comparison
from hfp.comparison.table import LAST, Row, Runs, cells_of, curves, grouped, headings
from hfp.federation.experiment import Experiment
from hfp.methods import methods

_STYLE = """
:root { --paper: #ffffff; --card: #f6f8fa }
@media (prefers-color-scheme: dark) { :root { --paper: #12181f; --card: #1a222b } }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 1200px; padding: 2.5rem 1.25rem 4rem; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .4rem }
h2 { font-size: 1.25rem; margin: 2.6rem 0 .8rem }
p { max-width: 75ch }
.soft, footer { color: var(--soft); font-size: .92rem }
.legend { display: flex; flex-wrap: wrap; gap: .35rem 1.4rem; position: sticky; top: 0; background: var(--paper);
  padding: .6rem 0; border-bottom: 1px solid var(--rule); margin: 1rem 0; font-size: .95rem }
.legend span::before { content: ""; display: inline-block; width: 1.6em; height: .28em; border-radius: 2px;
  background: currentColor; vertical-align: middle; margin-right: .5em }
.legend span.dashed::before { background: none; height: 0; border-top: .28em dotted; border-radius: 0 }
.legend b { color: var(--ink); font-weight: 500 }
.scroll { overflow-x: auto }
table { border-collapse: collapse; width: 100%; font-size: .92rem }
th, td { padding: .42rem .7rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--rule);
  font-variant-numeric: tabular-nums }
th { color: var(--soft); font-weight: 500 }
th:first-child, td:first-child, th:last-child, td:last-child { text-align: left }
tr.best td:nth-child(2) { font-weight: 700 }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(440px, 100%), 1fr)); gap: 1.1rem;
  margin: 1.1rem 0 }
figure { margin: 0; background: var(--card); border: 1px solid var(--rule); border-radius: 10px; padding: .8rem }
svg { display: block; width: 100%; height: auto }
svg text { font-family: inherit }
.curve:hover path { stroke-width: 4 !important }
COLOURS
@media print { .legend { position: static } figure { break-inside: avoid } }
"""


def page(comparison: Comparison, runs: Runs, rows: Sequence[Row]) -> str:
    """The whole page.

    Raises:
        InputError: matplotlib isn't installed.
    """
    title = f"{len(comparison.variants)} federated methods on {comparison.base.get('dataset', Experiment.dataset)}"
    parts = [f"<h1>{escape(title)}</h1>", f'<p class="soft">{escape(_about(comparison))}</p>', _legend(comparison)]
    for alpha in comparison.alphas:
        parts += _over_sizes(comparison, rows, alpha)
        for size, _ in comparison.sizes:
            group = grouped(rows).get((alpha, size))
            if group:
                parts += _section(comparison, runs, group, alpha, size)
    parts.append(_sources(comparison))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_style()}</style></head>\n<body>"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def _style() -> str:
    classes = "\n".join(f".s{index} {{ color: var(--c{index}) }}" for index in range(len(LIGHT)))
    return variables() + _STYLE.replace("COLOURS", classes)


def _about(comparison: Comparison) -> str:
    first = next(comparison.cells()).experiment
    data = "the whole training set" if first.train_images is None else f"{first.train_images:,} training images"
    several = len(comparison.seeds) > 1
    begun = first.epochs_in(0)
    longer = f" ({begun} in the first round, then fewer)" if begun > first.epochs else ""
    return (
        f"{first.model}, {data} over {first.clients} clients, {first.rounds} rounds of {first.epochs} local "
        f"epoch{'s' * (first.epochs > 1)}{longer}, batches of {first.batch_size}, learning rate "
        f"{first.learning_rate:g}; seed{'s' * several} {', '.join(map(str, comparison.seeds))}. At one seed every "
        "method sees the same partition, initial weights and batches. Accuracy is the global model's on the whole test "
        f"set: the mean of the last {LAST} rounds"
        + (", ± one standard deviation over seeds; bands span the seeds." if several else ".")
    )


def _legend(comparison: Comparison) -> str:
    entries = (
        f'<span class="{_classes(index)}"><b>{escape(variant.name)}</b></span>'
        for index, variant in enumerate(comparison.variants)
    )
    return f'<div class="legend">{"".join(entries)}</div>'


def _section(comparison: Comparison, runs: Runs, group: Sequence[Row], alpha: float, size: str) -> list[str]:
    best = max(row.accuracy.mean for row in group)
    personal = any(row.own is not None for row in group)
    body = "".join(
        f"<tr{' class=best' if row.accuracy.mean == best else ''}>"
        + "".join(f"<td>{escape(text)}</td>" for text in cells_of(row, personal))
        + "</tr>"
        for row in group
    )
    head = "".join(f"<th>{escape(text)}</th>" for text in headings(group))
    charts = [round_chart(comparison, runs, alpha, size, against) for against in ("round", "megabytes")]
    return [
        f"<h2>{escape(size.capitalize())}, alpha {alpha:g}</h2>",
        f'<p class="soft">Differences are paired with {escape(comparison.variants[0].name)}. “To target” is the mean '
        f"of what it took to reach {group[0].target:.1f} %.</p>",
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>',
        _figures(charts),
    ]


def _over_sizes(comparison: Comparison, rows: Sequence[Row], alpha: float) -> list[str]:
    """What changes with what clients remove, when there is more than one size."""
    if len(comparison.sizes) < 2:
        return []
    charts = [size_chart(comparison, rows, alpha, title) for title in _shown(rows)]
    return [f"<h2>From size to size, alpha {alpha:g}</h2>", _figures(charts)]


def figures(comparison: Comparison, runs: Runs, rows: Sequence[Row]) -> dict[str, str]:
    """The page's charts as SVG files of their own, each with its legend, by name.

    Raises:
        InputError: matplotlib isn't installed.
    """
    charts = {
        f"{alpha:g}-{title}": size_chart(comparison, rows, alpha, title, legend=True)
        for alpha in comparison.alphas
        if len(comparison.sizes) > 1
        for title in _shown(rows)
    }
    for alpha, size in grouped(rows):
        for against in ("round", "megabytes"):
            charts[f"{alpha:g}-{size}-{against}"] = round_chart(comparison, runs, alpha, size, against, legend=True)
    return {f"alpha-{file_name(name)}.svg": standalone(chart) for name, chart in charts.items()}


def file_name(title: str) -> str:
    """The title in lower case, what is no letter, digit or dot as a dash."""
    return "-".join("".join(c if c.isalnum() or c == "." else " " for c in title.lower()).split())


def _shown(rows: Sequence[Row]) -> list[str]:
    return [title for title, (_, figure) in FIGURES.items() if any(figure(row) is not None for row in rows)]


FIGURES: Mapping[str, tuple[str, Callable[[Row], float | None]]] = {
    "Accuracy": ("test accuracy, %", lambda row: row.accuracy.mean),
    "Clients' own models on data like theirs": ("accuracy, %", lambda row: None if row.own is None else row.own.mean),
    "Megabytes moved": ("megabytes, up and down", lambda row: row.megabytes_up + row.megabytes_down),
    "Training": ("1e9 multiply-accumulates", lambda row: row.gmacs),
    "Time on the clients' devices": ("simulated seconds", lambda row: row.seconds),
}
"""What is drawn against what clients remove: title -> label, figure."""


def size_chart(comparison: Comparison, rows: Sequence[Row], alpha: float, title: str, *, legend: bool = False) -> str:
    """One of `FIGURES` for every variant against the sizes, ratios in their proportions, at one alpha.

    Raises:
        InputError: matplotlib isn't installed.
    """
    label, figure = FIGURES[title]
    names = [name for name, _ in comparison.sizes]
    places = [100 * ratio for ratio in comparison.ratios] or range(len(names))
    lines = []
    for index, variant in enumerate(comparison.variants):
        mine = [row for row in rows if (row.alpha, row.variant) == (alpha, variant.name)]
        points = [(float(places[names.index(row.size)]), value) for row in mine if (value := figure(row)) is not None]
        lines += [Line(variant.name, index, points)] if points else []
    across = "channels removed, %" if comparison.ratios else "what clients remove"
    zero = "ccuracy" not in title + label
    shown = [f"{place:g}" for place in places] if comparison.ratios else names
    labels = {float(place): text for place, text in zip(places, shown, strict=True)}
    return line_chart(title, across, label, lines, places=labels, zero=zero, legend=legend)


def round_chart(
    comparison: Comparison, runs: Runs, alpha: float, size: str, against: str, *, legend: bool = False
) -> str:
    """Accuracy along the run `against` "round" or "megabytes", for every variant at one alpha and size.

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


def _figures(charts: Sequence[str]) -> str:
    return '<div class="charts">' + "".join(f"<figure>{chart}</figure>" for chart in charts) + "</div>"


def _sources(comparison: Comparison) -> str:
    used = {variant.changes.get("method", Experiment.method) for variant in comparison.variants}
    papers = "; ".join(f"{m.name}: {m.source}" for m in methods() if m.name in used)
    return f"<footer><p>{escape(papers)}.</p></footer>"


def _classes(index: int) -> str:
    """A variant's colour, and that its curves are dashed where colours come round again."""
    return f"s{index % len(LIGHT)}" + (" dashed" if index >= len(LIGHT) else "")
