"""The picture of a page: accuracy against the share removed."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from criteria_study.entries import label, wins_for_us
from criteria_study.log import Row
from criteria_study.report import WAYS, Line, Way, lines_of, networks

Found = Mapping[float, Mapping[int, float]]
SHOWN = tuple(way for way in WAYS if way.repair != "none")


def draw(rows: list[Row], file: Path) -> None:
    """A row of panels for each network, one panel for each way of repairing that was tried at several ratios."""
    names, ways = networks(rows), [way for way in SHOWN if curves(rows, way)]
    figure = Figure(figsize=(4.2 * max(len(ways), 1), 3.8 * max(len(names), 1)), layout="constrained")
    for row, network in enumerate(names):
        mine = [each for each in rows if each["trained"] == network]
        for column, way in enumerate(ways):
            if not curves(mine, way):
                continue
            axes = figure.add_subplot(len(names), len(ways), row * len(ways) + column + 1)
            axes.set_title(f"{network}\n{way.title}", fontsize=8)
            axes.set(xlabel="share of multiply-accumulates removed", ylabel="accuracy in %")
            panel(axes, curves(mine, way))
    part = file.with_suffix(f".part{file.suffix}")
    figure.savefig(part, dpi=100)
    part.replace(file)


def curves(rows: list[Row], way: Way) -> list[Line]:
    """The lines of a table with more than one point."""
    return [line for line in lines_of(rows, way) if sum(map(bool, line[2].values())) > 1]


def panel(axes: Axes, lines: list[Line]) -> None:
    """Ours thick, with the spread over seeds; of torch-pruning's each criterion's better ranking, dotted."""
    best: dict[tuple[str, str], tuple[str, Found]] = {}
    for name, ranking, found in lines:
        key = (name, ranking if wins_for_us(name, ranking) else "")
        if key not in best or total(found) > total(best[key][1]):
            best[key] = (ranking, found)
    for (name, own), (ranking, found) in best.items():
        ratios = [ratio for ratio, values in found.items() if values]
        means = [100 * statistics.mean(found[ratio].values()) for ratio in ratios]
        text = f"{label(name)}, {ranking}"
        if own:
            spreads = [100 * statistics.stdev(v) if len(v := list(found[r].values())) > 1 else 0 for r in ratios]
            axes.errorbar(ratios, means, spreads, label=text, marker="o", markersize=3, linewidth=2, capsize=2)
        else:
            axes.plot(ratios, means, label=text, marker=".", linestyle=":", linewidth=1)
    axes.legend(fontsize=5)


def total(found: Found) -> float:
    """What lines are compared by: their mean over all ratios."""
    return statistics.mean(statistics.mean(values.values()) for values in found.values() if values)
