"""Draws accuracy against the share removed, for the README, from the figures of `examples/benchmarks/criteria.csv`.

    python docs/pictures/one_shot.py            # writes one-shot.svg beside this file
    python docs/pictures/one_shot.py --check    # fails if the picture is not that of the data

"torch-pruning's best" is the best of its eight criteria at each share, chosen after the fact.
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

HERE = Path(__file__).parent
DATA = HERE.parents[1] / "examples" / "benchmarks" / "criteria.csv"
PICTURE = HERE / "one-shot.svg"
GREY, BLUE, ORANGE = "#7b8794", "#3b82f6", "#f59e0b"
NETWORKS = {"cifar10/resnet20/0.5": "ResNet-20 on CIFAR-10", "fmnist/vgg-small/0.5": "small VGG on Fashion-MNIST"}
Line = Mapping[str, str]


def hfp(line: Line) -> bool:
    """Whether a line is of the criterion and ranking that are recommended with data."""
    return (line["criterion"], line["ranking"]) == ("kronecker", "measured")


def torch_pruning(line: Line) -> bool:
    """Whether a line is of torch-pruning's criteria and rankings."""
    return line["criterion"].endswith("(torch-pruning)") and line["ranking"] != "measured"


CURVES: tuple[tuple[str, str, Callable[[Line], bool], str, str], ...] = (
    ("hfp, repaired", "at once, closed-form repair", hfp, BLUE, "o-"),
    ("torch-pruning's best, repaired by hfp", "at once, closed-form repair", torch_pruning, ORANGE, "s-"),
    ("hfp, no repair", "at once, no repair", hfp, BLUE, "o:"),
    ("torch-pruning's best, no repair", "at once, no repair", torch_pruning, ORANGE, "s:"),
)


def main() -> None:
    """Write the picture, or tell that it is out of date."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing, and fail if the picture would change")
    drawn = picture()
    if parser.parse_args().check:
        sys.exit(0 if PICTURE.read_text(encoding="utf-8") == drawn else f"{PICTURE} is not that of {DATA}")
    PICTURE.write_text(drawn, encoding="utf-8")


def curve(lines: list[Line], network: str, protocol: str, chosen: Callable[[Line], bool]) -> list[tuple[float, ...]]:
    """The best of the chosen lines at each share removed: share, accuracy, its standard deviation over seeds."""
    best: dict[float, tuple[float, float]] = {}
    for line in lines:
        shown = line["protocol"] == "unpruned" or (line["protocol"] == protocol and chosen(line))
        if line["network"] == network and shown:
            found = float(line["accuracy"]), float(line["accuracy_spread"] or 0)
            best[float(line["removed"])] = max(best.get(float(line["removed"]), found), found)
    return [(share, *best[share]) for share in sorted(best)]


def picture() -> str:
    """The picture as SVG text."""
    plt.rcParams.update({"font.size": 10, "text.color": GREY, "svg.hashsalt": "hfp", "svg.fonttype": "path"})
    with DATA.open(newline="", encoding="utf-8") as stream:
        lines = list(csv.DictReader(stream))
    figure, panels = plt.subplots(1, len(NETWORKS), figsize=(8.6, 3.7), sharex=True)
    for axes, (network, title) in zip(panels, NETWORKS.items(), strict=True):
        for name, protocol, chosen, colour, style in CURVES:
            shares, accuracy, spread = zip(*curve(lines, network, protocol, chosen), strict=True)
            axes.errorbar(shares, accuracy, spread, fmt=style, color=colour, label=name, capsize=2, markersize=4)
        axes.set_title(title, fontsize=10, color=GREY)
        axes.set_xlabel("multiply-accumulates removed, %", color=GREY)
        axes.set_ylim(0, 100)
        axes.grid(color=GREY, alpha=0.2)
        axes.tick_params(colors=GREY)
        for side in axes.spines.values():
            side.set_visible(False)
        axes.patch.set_alpha(0)
    panels[0].set_ylabel("test accuracy, %", color=GREY)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="lower center", ncols=2, frameon=False, labelcolor=GREY)
    figure.tight_layout(rect=(0, 0.14, 1, 1))
    text = io.StringIO()
    figure.savefig(text, transparent=True, metadata={"Date": None, "Creator": None})
    plt.close(figure)
    return text.getvalue()


if __name__ == "__main__":
    main()
