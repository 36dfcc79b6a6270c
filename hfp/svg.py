"""Line charts as SVG text, coloured by the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 520, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 14, 34, 46


@dataclass(frozen=True)
class Line:
    """A curve: `index` picks its colour (class ``s0``, ``s1`` …); points are (x, y) or (x, y, low, high)."""

    name: str
    index: int
    points: Sequence[tuple[float, ...]]


def line_chart(
    title: str, x_label: str, y_label: str, lines: Sequence[Line], *, names: Sequence[str] = (), zero: bool = False
) -> str:
    """An SVG element with axes, bands where points have a low and a high, and a tooltip on every curve.

    `names` label the places 0, 1, 2 … on the x axis instead of numbers, and every point gets a dot. With `zero` the y
    axis starts there.
    """
    xs = [point[0] for line in lines for point in line.points]
    ys = [value for line in lines for point in line.points for value in point[1:]]
    across = (-0.25, len(names) - 0.75) if names else (min(xs), max(xs))
    frame = _Frame(across, (0.0, 1.04 * max(ys) or 1.0) if zero else _with_room(ys))
    places = {float(place): name for place, name in enumerate(names)} or {x: f"{x:g}" for x in ticks(min(xs), max(xs))}
    parts = [_text("title", _LEFT, 18, title)]
    parts += [*_rules(frame), *_places(frame, places), *_labels(x_label, y_label)]
    parts += [_band(frame, line) for line in lines if line.points and len(line.points[0]) > 2]
    parts += [_curve(frame, line, bool(names)) for line in lines]
    opening = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title, quote=True)}">'
    return opening + "".join(parts) + "</svg>"


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers from `low` to `high`, at most `most` of them, steps of 1, 2 or 5 times a power of ten."""
    if high <= low:
        return [low]
    rough = (high - low) / (most - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]


@dataclass(frozen=True)
class _Frame:
    """The data's range and its place in the picture."""

    x: tuple[float, float]
    y: tuple[float, float]

    def across(self, value: float) -> float:
        low, high = self.x
        share = (value - low) / (high - low) if high > low else 0.5
        return _LEFT + share * (WIDTH - _LEFT - _RIGHT)

    def up(self, value: float) -> float:
        low, high = self.y
        share = (value - low) / (high - low) if high > low else 0.5
        return HEIGHT - _BOTTOM - share * (HEIGHT - _TOP - _BOTTOM)

    def path(self, points: Sequence[tuple[float, float]]) -> str:
        return " ".join(f"{self.across(x):.1f},{self.up(y):.1f}" for x, y in points)


def _with_room(values: Sequence[float]) -> tuple[float, float]:
    """The values' range with a little air."""
    low, high = min(values), max(values)
    air = 0.04 * (high - low) or 1.0
    return low - air, high + air


def _text(style: str, x: float, y: float, text: str, anchor: str = "start", more: str = "") -> str:
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{more}>{escape(text)}</text>'


def _rules(frame: _Frame) -> list[str]:
    """A line and its number for every round value of y."""
    parts = []
    for tick in ticks(*frame.y):
        y = frame.up(tick)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(_text("tick", _LEFT - 7, y + 4, f"{tick:g}", "end"))
    return parts


def _places(frame: _Frame, places: Mapping[float, str]) -> list[str]:
    """The x axis and what stands under it."""
    floor = HEIGHT - _BOTTOM
    axis = f'<line class="axis" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{floor}" y2="{floor}"/>'
    return [axis, *(_text("tick", frame.across(x), floor + 16, text, "middle") for x, text in places.items())]


def _labels(x_label: str, y_label: str) -> list[str]:
    across, up = (_LEFT + WIDTH - _RIGHT) / 2, (_TOP + HEIGHT - _BOTTOM) / 2
    turned = f' transform="rotate(-90 14 {up:.1f})"'
    return [_text("label", across, HEIGHT - 8, x_label, "middle"), _text("label", 14, up, y_label, "middle", turned)]


def _band(frame: _Frame, line: Line) -> str:
    low = [(point[0], point[2]) for point in line.points]
    high = [(point[0], point[3]) for point in reversed(line.points)]
    return f'<polygon class="band s{line.index}" points="{frame.path(low + high)}"/>'


def _curve(frame: _Frame, line: Line, marks: bool) -> str:
    points = [(point[0], point[1]) for point in line.points]
    tip = f"<title>{escape(line.name)}: {points[-1][1]:.4g}</title>"
    dots = [
        f'<circle class="s{line.index}" cx="{frame.across(x):.1f}" cy="{frame.up(y):.1f}" r="3.5">'
        f"<title>{escape(line.name)}: {y:.4g}</title></circle>"
        for x, y in points
    ]
    curve = f'<polyline class="s{line.index}" points="{frame.path(points)}">{tip}</polyline>'
    return curve + ("".join(dots) if marks or len(points) == 1 else "")
