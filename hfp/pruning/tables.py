"""Reports of prunings as tables and lines: costs first, then layers, in at most 80 columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from html import escape

from rich.console import Group
from rich.table import Table
from rich.text import Text

from hfp.pruning.layers_report import LayerReport
from hfp.pruning.reasons import reason_lines

Costs = Mapping[str, tuple[float, float]]
Errors = Mapping[str, tuple[float, float]]
_MOST_ROWS = 200  # of a table in a notebook


def shown(layers: Sequence[LayerReport], costs: Costs) -> Group:
    """Total costs, a table of the layers, and one line for each reason to leave layers alone."""
    return Group(cost_table(costs), layer_table(layers), *(Text(line) for line in left_alone_lines(layers)))


def cost_table(costs: Costs) -> Table:
    """One row for each cost of the whole model: before and after, and the share that is left."""
    table = Table.grid(padding=(0, 2))
    for place in ("left", "right", "right"):
        table.add_column(justify=place)
    for name, pair, share in _cost_rows(costs):
        table.add_row(f"total {name}", pair, share)
    return table


def layer_table(layers: Sequence[LayerReport], errors: Errors | None = None) -> Table:
    """One row a layer; a batch-norm layer is in the row of the layer that it normalises.

    Args:
        layers: what happened to them.
        errors: layer -> the error of its outputs before and after a repair; None for no such column.
    """
    table = Table()
    table.add_column("layer", overflow="fold")
    for column in _columns(errors)[1:]:
        table.add_column(column, justify="right", no_wrap=True)
    for row in _layer_rows(folded(layers), errors):
        table.add_row(*row)
    return table


def _columns(errors: Errors | None) -> tuple[str, ...]:
    return ("layer", "outputs", "inputs", "parameters", *(("error",) if errors else ()))


def folded(layers: Sequence[LayerReport]) -> list[LayerReport]:
    """The layers, with every batch-norm layer that follows one of as many channels as a part of it."""
    found: list[LayerReport] = []
    for layer in layers:
        last = found[-1] if found else None
        if last is not None and last.inputs is not None and _normalises(layer, last):
            parent, _, own = layer.name.rpartition(".")
            name = layer.name if parent != last.name.rpartition(".")[0] else "norm" if own.isdigit() else own
            pairs = zip(last.parameters, layer.parameters, strict=True)
            before, after = (one + other for one, other in pairs)
            found[-1] = replace(last, name=f"{last.name} + {name}", parameters=(before, after))
        else:
            found.append(layer)
    return found


def _normalises(layer: LayerReport, other: LayerReport) -> bool:
    return "BatchNorm" in layer.kind and (layer.before, layer.after) == (other.before, other.after)


def left_alone_lines(layers: Sequence[LayerReport]) -> list[str]:
    """For every reason, the layers that were left alone because of it."""
    return list(reason_lines("left alone", ((layer.name, layer.reason) for layer in folded(layers) if layer.reason)))


def cost_lines(costs: Costs, distance: Mapping[str, float]) -> Iterator[str]:
    """One line for each cost: before, after, the share that is left, and how far from its limit that is."""
    for name, pair, share in _cost_rows(costs):
        yield f"{name:<8} {pair}, {share} left{limit_words(name, distance)}"


def limit_lines(costs: Costs, distance: Mapping[str, float]) -> Iterator[str]:
    """One line for each cost that has a limit: the share that is left, and how far from the limit that is."""
    for name in distance:
        yield f"{name}: {costs[name][1] / costs[name][0]:.2%} left{limit_words(name, distance)}"


def limit_words(name: str, distance: Mapping[str, float]) -> str:
    """How far a cost is from its limit, in points of the full model's cost; nothing where it has none."""
    if name not in distance:
        return ""
    away = distance[name] * 100
    if 0 <= away < 0.005:
        return ", at the limit"
    return f", {abs(away):.2g} points {'below' if away >= 0 else 'ABOVE'} the limit"


def html(
    headline: str, layers: Sequence[LayerReport], costs: Costs, lines: Sequence[str], errors: Errors | None = None
) -> str:
    """The same as tables for a notebook."""
    rows = _layer_rows(folded(layers), errors)
    more = [] if len(rows) <= _MOST_ROWS else [f"{len(rows) - _MOST_ROWS} more layers are in report.layers"]
    return "".join((
        f"<p>{escape(headline)}</p>",
        _html_table(("cost", "full → pruned", "left"), _cost_rows(costs)),
        *(f"<p>{escape(line)}</p>" for line in lines),
        _html_table(_columns(errors), rows[:_MOST_ROWS]),
        *(f"<p>{line}</p>" for line in more),
    ))  # fmt: skip


def _html_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows]
    body = "".join(f"<tr>{row}</tr>" for row in cells)
    return f"<table><thead><tr>{''.join(f'<th>{name}</th>' for name in head)}</tr></thead><tbody>{body}</tbody></table>"


def _cost_rows(costs: Costs) -> list[tuple[str, str, str]]:
    return [
        (name, _seconds(*pair) if name == "latency" else _pair(*pair), f"{pair[1] / pair[0]:.1%}" if pair[0] else "")
        for name, pair in costs.items()
    ]


def _layer_rows(layers: Sequence[LayerReport], errors: Errors | None) -> list[tuple[str, ...]]:
    return [
        (
            layer.name,
            _counts(layer.before, layer.after),
            _counts(*layer.inputs) if layer.inputs else "",
            _pair(*layer.parameters),
            *([_error(errors, layer.name)] if errors else []),
        )
        for layer in layers
    ]


def _error(errors: Errors, name: str) -> str:
    """The error of a layer, which batch-norm may be folded into."""
    pair = errors.get(name.partition(" + ")[0])
    return "" if pair is None else f"{_share(pair[0])} → {_share(pair[1])}"


def _share(value: float) -> str:
    return f"{value:.0%}" if value >= 0.0995 else f"{value:.1%}"


def _seconds(before: float, after: float) -> str:
    return f"{before * 1e3:.3g} ms → {after * 1e3:.3g} ms"


def _counts(before: int, after: int) -> str:
    return f"{before}" if before == after else f"{before} → {after}"


def _pair(before: float, after: float) -> str:
    return _short(before) if before == after else f"{_short(before)} → {_short(after)}"


def _short(value: float) -> str:
    """A count in at most seven characters: 9,999, 12.3 k, 4.09 G."""
    if value < 10_000:
        return f"{value:,.0f}"
    for scale, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= scale * 0.9995:
            return f"{value / scale:.3g} {unit}" if value < scale * 999.5 else f"{value / scale:,.0f} {unit}"
    raise AssertionError("every value from 10,000 has a unit")
