"""The picture of a page: accuracy against the share removed, of the measured ranking and of torch-pruning's criteria.

Our criteria by the other rankings are in the tables alone, where their lines can be told apart.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path

from matplotlib import colormaps
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from criteria_study.entries import is_ours, label, wins_for_us
from criteria_study.log import Row
from criteria_study.report import WAYS, Line, Way, lines_of, networks

Found = Mapping[float, Mapping[int, float]]
Key = tuple[str, str]
SHOWN = tuple(way for way in WAYS if way.repair != "none")


def draw(rows: list[Row], file: Path) -> None:
    """A row of panels for each network, one panel for each way of repairing that was tried at several ratios."""
    names, ways = networks(rows), [way for way in SHOWN if curves(rows, way)]
    colours = colours_of([line for way in ways for line in curves(rows, way)])
    shown: dict[str, Artist] = {}
    figure = Figure(figsize=(4.2 * max(len(ways), 1), 3.2 * max(len(names), 1) + 1), layout="constrained")
    for row, network in enumerate(names):
        mine = [each for each in rows if each["trained"] == network]
        for column, way in enumerate(ways):
            if not curves(mine, way):
                continue
            axes = figure.add_subplot(len(names), len(ways), row * len(ways) + column + 1)
            axes.set_title(f"{network}\n{way.title}", fontsize=8)
            axes.set(xlabel="share of multiply-accumulates removed", ylabel="accuracy in %")
            panel(axes, curves(mine, way), colours)
            shown |= {text: handle for handle, text in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(shown.values(), shown.keys(), loc="outside lower center", ncols=3, fontsize=7)
    part = file.with_suffix(f".part{file.suffix}")
    figure.savefig(part, dpi=100)
    part.replace(file)


def curves(rows: list[Row], way: Way) -> list[Line]:
    """The lines of a table that are drawn: those with more than one point."""
    return [
        (name, ranking, found)
        for name, ranking, found in lines_of(rows, way)
        if sum(map(bool, found.values())) > 1 and (ranking == "measured" or not is_ours(name))
    ]


def key_of(name: str, ranking: str) -> Key:
    """What has a colour of its own: each of our lines, and each of torch-pruning's criteria."""
    return name, ranking if wins_for_us(name, ranking) else ""


def colours_of(lines: list[Line]) -> Mapping[Key, object]:
    """The same colour in all panels."""
    keys = dict.fromkeys(key_of(name, ranking) for name, ranking, _ in lines)
    return {key: colormaps["tab20"](place % 20) for place, key in enumerate(sorted(keys, key=lambda key: not key[1]))}


def panel(axes: Axes, lines: list[Line], colours: Mapping[Key, object]) -> None:
    """Ours thick, with the spread over seeds; of torch-pruning's each criterion's better ranking, dotted."""
    best: dict[Key, Found] = {}
    for name, ranking, found in lines:
        key = key_of(name, ranking)
        if key not in best or total(found) > total(best[key]):
            best[key] = found
    for key, found in best.items():
        ratios = [ratio for ratio, values in found.items() if values]
        means = [100 * statistics.mean(found[ratio].values()) for ratio in ratios]
        colour, text = colours[key], ", ".join(filter(None, (label(key[0]), key[1])))
        if key[1]:
            spreads = [100 * statistics.stdev(v) if len(v := list(found[r].values())) > 1 else 0 for r in ratios]
            axes.errorbar(
                ratios, means, spreads, color=colour, label=text, marker="o", markersize=3, linewidth=2, capsize=2
            )
        else:
            axes.plot(ratios, means, color=colour, label=text, marker=".", linestyle=":", linewidth=1)


def total(found: Found) -> float:
    """What lines are compared by: their mean over all ratios."""
    return statistics.mean(statistics.mean(values.values()) for values in found.values() if values)
