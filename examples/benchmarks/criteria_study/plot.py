"""The picture of a page: accuracy against the share removed."""

from __future__ import annotations

import statistics
from pathlib import Path

from criteria_study.entries import label, wins_for_us
from criteria_study.log import Row
from criteria_study.pruned import RATIOS
from criteria_study.report import WAYS, Way, lines_of, networks

SHOWN = tuple(way for way in WAYS if way.key in ("batch-norm", "epoch"))


def draw(rows: list[Row], file: Path) -> None:
    """A row of panels for each network, one for each way; ours in colour, torch-pruning's grey."""
    from matplotlib.figure import Figure

    names, ways = networks(rows), [way for way in SHOWN if list(lines_of(rows, way))]
    figure = Figure(figsize=(5 * len(ways), 3.6 * len(names)), layout="constrained")
    for row, network in enumerate(names):
        mine = [each for each in rows if each["trained"] == network]
        for column, way in enumerate(ways):
            axes = figure.add_subplot(len(names), len(ways), row * len(ways) + column + 1)
            axes.set_title(f"{network}: {way.title}", fontsize=8)
            axes.set(xlabel="share of multiply-accumulates removed", ylabel="accuracy in %")
            panel(axes, mine, way)
    figure.savefig(file, dpi=110)


def panel(axes: object, rows: list[Row], way: Way) -> None:
    """One panel: the best ranking of every criterion, with the spread of ours."""
    best: dict[str, tuple[float, str, dict[float, dict[int, float]]]] = {}
    for name, ranking, found in lines_of(rows, way):
        if all(found.values()):
            key = f"{name} {ranking}" if wins_for_us(name, ranking) else name
            total = sum(statistics.mean(each.values()) for each in found.values())
            if key not in best or total > best[key][0]:
                best[key] = (total, ranking, found)
    for key, (_, ranking, found) in best.items():
        ours = wins_for_us(key.removesuffix(f" {ranking}"), ranking)
        means = [100 * statistics.mean(found[ratio].values()) for ratio in RATIOS]
        text = key if ours else f"{label(key)}, {ranking}"
        axes.plot(RATIOS, means, label=text, marker=".", linestyle="-" if ours else ":", linewidth=2 if ours else 1)
    axes.legend(fontsize=5)
