"""Line and bar charts as SVG text, drawn by matplotlib, coloured by the style sheet of the page that they stand in.

matplotlib comes with the `examples` extra.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from textwrap import wrap
from typing import Any

from hfp.results.plots import literal, make_figure

LIGHT = ("#0b7285", "#d9480f", "#5f3dc4", "#2b8a3e", "#c2255c", "#1864ab", "#e67700", "#495057", "#862e9c", "#5c940d")
DARK = ("#3bc9db", "#ff922b", "#b197fc", "#69db7c", "#faa2c1", "#74c0fc", "#ffd43b", "#ced4da", "#e599f7", "#c0eb75")
_INK, _SOFT, _RULE = "#010101", "#020202", "#030303"  # stand for the style sheet's variables
_INKS = {_INK: "var(--ink)", _SOFT: "var(--soft)", _RULE: "var(--rule)"}
_LINES = {f"#04{index:02x}04": f"var(--c{index})" for index in range(len(LIGHT))}
_MARKS = "osD^vPX*<>"
STROKES = ("-", "--", ":", "-.")
"""Curves beyond the colours take these in turn, each for as many curves as there are colours."""

FEW = 20
"""A curve of at most this many points has a mark at each of them."""


LEGEND = 80
"""This many letters are about as wide as a chart; a curve's mark in the legend is as wide as 8."""


@dataclass(frozen=True)
class Line:
    """A curve of a chart.

    Args:
        name: what the legend calls it.
        index: picks its colour and mark, and dashes where there are more curves than colours.
        points: (x, y) each, or (x, y, low, high) where a band is drawn around the curve.
    """

    name: str
    index: int
    points: Sequence[tuple[float, ...]]


def variables() -> str:
    """Return the style sheet's rules for the colours that charts use, light and dark."""

    def declared(ink: str, soft: str, rule: str, colours: Sequence[str]) -> str:
        own = "".join(f" --c{index}: {colour};" for index, colour in enumerate(colours))
        return f"--ink: {ink}; --soft: {soft}; --rule: {rule};{own}"

    return (
        f":root {{ color-scheme: light dark; {declared('#1b2733', '#5c6b7a', '#dde3e9', LIGHT)} }}\n"
        f"@media (prefers-color-scheme: dark) {{ :root {{ {declared('#e6ebf0', '#9aa8b6', '#33404d', DARK)} }} }}\n"
    )


def line_chart(
    title: str,
    x_label: str,
    y_label: str,
    lines: Sequence[Line],
    *,
    places: Mapping[float, str] | None = None,
    zero: bool = False,
    legend: bool = False,
) -> str:
    """Draw an SVG element. Every curve says its name and its last value when it is pointed at.

    Args:
        title: the chart's title.
        x_label: the label of the x axis.
        y_label: the label of the y axis.
        lines: the curves.
        places: where the x axis is labelled, and with what; by default at round numbers.
        zero: start the y axis at 0.
        legend: draw a legend below the chart.

    Raises:
        InputError: matplotlib isn't installed.
    """
    names = ["\n".join(wrap(line.name, LEGEND - 8)) for line in lines]
    longest = max((len(line.name) for line in lines), default=0)
    columns = max(1, min(4, LEGEND // (8 + longest)))
    rows = sum(1 + name.count("\n") for name in names) / columns
    figure = make_figure(6.4, 4.1 + 0.2 * legend * rows)
    axes = figure.subplots()
    curves = [_draw(axes, line) for line in lines]
    axes.set_title(literal(title), loc="left", fontsize=12, fontweight="bold", color=_INK, pad=10)
    axes.set_xlabel(literal(x_label), color=_SOFT)
    axes.set_ylabel(literal(y_label), color=_SOFT)
    _style(axes)
    _place_ticks(axes, lines, places)
    if zero:
        axes.set_ylim(bottom=0)
    if legend:
        texts = [literal(name) for name in names]  # given, since of a curve's own a first "_" would hide it
        figure.legend(
            curves, texts, loc="outside lower center", ncols=columns, frameon=False, labelcolor=_INK, fontsize=9
        )
    return _as_element(_svg(figure), title, lines)


@dataclass(frozen=True)
class Bar:
    """One bar of a chart, with a line from `low` to `high` where they are given."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None


def bar_chart(title: str, x_label: str, bars: Sequence[Bar]) -> str:
    """Draw an SVG element with a bar for each name, from top to bottom, and each value at its bar's end.

    Args:
        title: the chart's title.
        x_label: what the values are.
        bars: the bars.

    Raises:
        InputError: matplotlib isn't installed.
    """
    figure = make_figure(6.4, 1.2 + 0.62 * len(bars))
    axes = figure.subplots()
    places = list(range(len(bars)))
    axes.barh(places, [bar.value for bar in bars], height=0.36, color=next(iter(_LINES)))
    for place, bar in zip(places, bars, strict=True):
        beside = {"xytext": (0, 9), "textcoords": "offset points", "fontsize": 10}
        axes.annotate(literal(bar.name), (0.0, place - 0.18), xycoords=("axes fraction", "data"), color=_INK, **beside)
        ends = max(bar.value, bar.high or 0.0)
        axes.annotate(f"{bar.value:g}", (ends, place), xytext=(6, -3.5), textcoords="offset points", color=_INK)
        if bar.low is not None and bar.high is not None:
            axes.plot([bar.low, bar.high], [place, place], color=_INK, linewidth=1.6)
    axes.set_title(literal(title), loc="left", fontsize=12, fontweight="bold", color=_INK, pad=16)
    axes.set_xlabel(literal(x_label), color=_SOFT)
    axes.set_yticks([])
    axes.set_ylim(len(bars) - 0.6, -0.75)
    axes.margins(x=0.12)
    _style(axes)
    axes.grid(False)
    axes.grid(color=_RULE, axis="x")
    return _as_element(_svg(figure), title, ())


def _style(axes: Any) -> None:
    axes.tick_params(colors=_SOFT, labelcolor=_SOFT, length=0)
    axes.grid(color=_RULE, axis="y")
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(_SOFT)
    axes.margins(x=0.02)


def _place_ticks(axes: Any, lines: Sequence[Line], places: Mapping[float, str] | None) -> None:
    whole = all(float(point[0]).is_integer() for line in lines for point in line.points)
    axes.locator_params(nbins=6)
    axes.locator_params(axis="x", integer=whole, min_n_ticks=1 if whole else 2)
    if places:
        axes.set_xticks(list(places), [literal(name) for name in places.values()])
        room = 0.07 * (max(places) - min(places)) or 1.0
        axes.set_xlim(min(places) - room, max(places) + room)


def standalone(chart: str) -> str:
    """Make a file of a chart, which is light or dark as its reader prefers."""
    return chart.replace(">", f"><style>{variables()}text {{ font-family: system-ui, sans-serif }}</style>", 1)


def _draw(axes: Any, line: Line) -> Any:
    """Draw a curve with its band, and return what the legend shows of it."""
    lap, place = divmod(line.index, len(_LINES))
    colour, stroke = list(_LINES)[place], STROKES[lap % len(STROKES)]
    xs, ys = [point[0] for point in line.points], [point[1] for point in line.points]
    mark = _MARKS[line.index % len(_MARKS)] if len(line.points) <= FEW else None
    width = 2.6 if line.index == 0 else 1.6
    drawn = {"color": colour, "linestyle": stroke, "linewidth": width, "marker": mark, "markersize": 5}
    (curve,) = axes.plot(xs, ys, **drawn, gid=_gid(line))
    if line.points and len(line.points[0]) > 2:
        low, high = [point[2] for point in line.points], [point[3] for point in line.points]
        axes.fill_between(xs, low, high, color=colour, alpha=0.1, linewidth=0)
    return curve


def _gid(line: Line) -> str:
    return f"curve-{line.index}"


def _svg(figure: Any) -> str:
    from matplotlib import rc_context

    buffer = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "hfp"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def _as_element(svg: str, title: str, lines: Sequence[Line]) -> str:
    """Take the SVG element out of the file; its page gives size, colours and font, and each curve gets a tooltip."""
    text = svg[svg.index("<svg") :].strip()
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->\s*|<style.*?</style>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', lambda found: _opening(title, found[1]), text, count=1)
    for line in lines:
        last = f": {line.points[-1][1]:.4g}" if line.points else ""
        tip = f'<g class="curve"><title>{escape(line.name + last)}</title>'
        text = text.replace(f'<g id="{_gid(line)}">', tip, 1)
    text = re.sub(r' id="(?!m[0-9a-f]{10}|p[0-9a-f]{10})[^"]*"', "", text)  # what is referred to keeps its name
    text = re.sub(r"font: (?:\w+ )?([\d.]+px) [^;\"]*", r"font-size: \1", text)
    text = re.sub(r"font-family: [^;\"]*;? ?", "", text)
    for colour, variable in {**_INKS, **_LINES}.items():
        text = text.replace(colour, variable)
    return text


def _opening(title: str, box: str) -> str:
    spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f'<svg {spaces} viewBox="{box}" role="img" aria-label="{escape(title, quote=True)}">'
