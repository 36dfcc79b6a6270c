"""Draws the documentation's pictures: `python docs/pictures/draw.py` writes the SVG files beside it.

The ground is transparent, and letters and lines are of one grey that reads on a light and on a dark page.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

HERE = Path(__file__).parent
GREY, BLUE, ORANGE, GREEN, RED = "#7b8794", "#3b82f6", "#f59e0b", "#22a06b", "#e5484d"
PICTURES: dict[str, Callable[[], None]] = {}

plt.rcParams.update({"font.size": 10, "text.color": GREY, "svg.hashsalt": "hfp", "svg.fonttype": "path"})


def picture(draw: Callable[[], None]) -> Callable[[], None]:
    """Register a function that draws one picture; the file takes its name."""
    PICTURES[draw.__name__.replace("_", "-")] = draw
    return draw


def canvas(width: float, height: float) -> Axes:
    """Make an empty drawing area in units of one channel's square, y pointing down."""
    figure = plt.figure(figsize=(width * 0.3, height * 0.3))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.set_aspect("equal")
    axes.axis("off")
    return axes


def square(axes: Axes, x: float, y: float, colour: str = BLUE, kept: bool = True, size: float = 1.0) -> None:
    """Draw one entry, filled where it is kept."""
    style = {"facecolor": colour, "alpha": 0.85} if kept else {"facecolor": "none", "linestyle": ":"}
    axes.add_patch(Rectangle((x + 0.06, y + 0.06), size - 0.12, size - 0.12, edgecolor=colour, linewidth=1, **style))


def shared(axes: Axes, x: float, y: float, colours: Sequence[str]) -> None:
    """Draw one entry that takes an equal part from each of some colours."""
    width = 0.88 / len(colours)
    for part, colour in enumerate(colours):
        axes.add_patch(Rectangle((x + 0.06 + part * width, y + 0.06), width, 0.88, facecolor=colour, alpha=0.85))


def column(axes: Axes, x: float, y: float, kept: Sequence[bool], colour: str = BLUE) -> None:
    """Draw the channels of a layer, one below the other."""
    for index, keep in enumerate(kept):
        square(axes, x, y + index, colour, keep)


def matrix(axes: Axes, x: float, y: float, rows: Sequence[bool], columns: Sequence[bool], colour: str = BLUE) -> None:
    """Draw a weight with the kept rows and columns filled."""
    for i, row in enumerate(rows):
        for j, col in enumerate(columns):
            square(axes, x + j, y + i, colour, row and col)


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], label: str = "", bend: float = 0.0) -> None:
    """Draw an arrow, with a label above its middle."""
    style = f"arc3,rad={bend}"
    axes.add_patch(
        FancyArrowPatch(
            start, end, arrowstyle="-|>", mutation_scale=11, color=GREY, connectionstyle=style, linewidth=1.2
        )
    )
    if label:
        middle = ((start[0] + end[0]) / 2, (start[1] + end[1]) / 2 - 0.4 - 3.2 * abs(bend) * (bend > 0))
        axes.text(*middle, label, ha="center", va="bottom", fontsize=9)


def label(axes: Axes, x: float, y: float, text: str, size: float = 10, colour: str = GREY, **where: str) -> None:
    """Write text, centred unless told otherwise."""
    axes.text(x, y, text, fontsize=size, color=colour, **{"ha": "center", "va": "center", **where})


def box(axes: Axes, x: float, y: float, width: float, height: float, text: str, colour: str = GREY) -> None:
    """Draw a labelled box."""
    axes.add_patch(
        FancyBboxPatch(
            (x, y),
            width,
            height,
            boxstyle="round,pad=0.05,rounding_size=0.3",
            facecolor="none",
            edgecolor=colour,
            linewidth=1.3,
        )
    )
    label(axes, x + width / 2, y + height / 2, text)


FIRST = (True, False, True, True, False, True)
SECOND = (True, True, False, True, False, False)


def flags(kept: Iterable[int], size: int = 6) -> tuple[bool, ...]:
    """Turn kept indices into one flag an index."""
    chosen = set(kept)
    return tuple(index in chosen for index in range(size))


@picture
def overview() -> None:
    """Prune, record, undo, federate."""
    axes = canvas(33, 11.5)
    label(axes, 3, 0.7, "full model")
    matrix(axes, 0.5, 1.5, [True] * 6, [True] * 5)
    arrow(axes, (6, 4.5), (10, 4.5), "prune")
    label(axes, 12, 0.7, "compact model")
    matrix(axes, 10.5, 2.5, [True] * 4, [True] * 3, ORANGE)
    label(axes, 12, 7.3, "index map", 9)
    label(axes, 12, 8.1, "rows 0 2 3 5\ncolumns 0 1 3", 8, va="top")
    arrow(axes, (10.3, 6), (6, 7.3), "undo", bend=-0.25)
    label(axes, 16.5, 4.5, "many\nclients")
    clients = (((0, 2, 3, 5), (0, 1, 3), ORANGE), ((0, 1, 4), (0, 1, 2, 4), GREEN), ((2, 3), (2, 3), RED))
    for index, (rows, columns, colour) in enumerate(clients):
        matrix(axes, 19.5, 0.6 + index * 4.3 - 0.8 * (index == 2), [True] * len(rows), [True] * len(columns), colour)
        arrow(axes, (24, 2.5 + 3.2 * index), (26.8, 4.3 + 0.4 * index))
    label(axes, 30, 0.7, "one full model, trained")
    for row in range(6):
        for col in range(5):
            holders = [colour for rows, columns, colour in clients if row in rows and col in columns]
            shared(axes, 27.5 + col, 1.5 + row, holders or [BLUE])


@picture
def coupled_groups() -> None:
    """An addition ties the channels of the layers that feed it."""
    axes = canvas(30, 10)
    kept = flags((0, 2, 3, 5))
    for x, text in ((1, "conv 1\nwrites"), (9, "conv 2\nwrites"), (17.5, "sum"), (24.5, "conv 3\nreads")):
        label(axes, x + 0.5, 8.8, text, 9)
        column(axes, x, 1.5, kept, ORANGE if x != 17.5 else BLUE)
    arrow(axes, (2.4, 4.5), (8.8, 4.5))
    arrow(axes, (10.4, 4.5), (17.2, 4.5))
    arrow(axes, (1.8, 1.2), (17.4, 1.2), bend=-0.12)
    label(axes, 9.6, 1.0, "skip connection", 9)
    arrow(axes, (18.9, 4.5), (24.3, 4.5))
    label(axes, 13.8, 5.6, "row i of conv 1, row i of conv 2\nand column i of conv 3 go together", 8)


@picture
def index_map() -> None:
    """Restrict takes entries out, embed puts them back."""
    axes = canvas(30, 10.2)
    rows, columns = flags((0, 2, 3, 5)), flags((0, 1, 3), 5)
    label(axes, 3.5, 0.6, "full weight")
    for i, row in enumerate(rows):
        label(axes, 0.5, 2 + i, str(i), 8, ORANGE if row else GREY)
    for j, col in enumerate(columns):
        label(axes, 1.5 + j, 8.1, str(j), 8, ORANGE if col else GREY)
    for i, row in enumerate(rows):
        for j, col in enumerate(columns):
            square(axes, 1 + j, 1.5 + i, ORANGE if row and col else BLUE)
    arrow(axes, (6.6, 3), (12.6, 3), "restrict")
    matrix(axes, 13.2, 2.4, [True] * 4, [True] * 3, ORANGE)
    label(axes, 14.7, 0.6, "compact weight")
    label(axes, 14.7, 8.1, "kept rows 0 2 3 5, kept columns 0 1 3", 8)
    arrow(axes, (16.8, 3), (22.8, 3), "embed")
    label(axes, 26.2, 0.6, "full weight again")
    for i, row in enumerate(rows):
        for j, col in enumerate(columns):
            square(axes, 23.5 + j, 1.5 + i, GREEN if row and col else BLUE)
    label(axes, 26, 8.4, "green: from the compact model\nblue: as they were", 8)


@picture
def gates() -> None:
    """A gate scales a channel wherever it is read."""
    axes = canvas(30, 8.5)
    box(axes, 0.5, 2.8, 4.5, 2.4, "layer")
    for index, colour in enumerate((BLUE, BLUE, RED, BLUE)):
        y = 1 + index * 1.9
        square(axes, 7.5, y - 0.5, colour)
        arrow(axes, (5.2, 4), (7.4, y))
        axes.add_patch(plt.Circle((12, y), 0.55, edgecolor=colour, facecolor="none", linewidth=1.3))
        label(axes, 12, y, "γ" if colour == BLUE else "γ", 9, colour)
        arrow(axes, (8.6, y), (11.4, y))
        arrow(axes, (12.6, y), (16.6, 4))
    box(axes, 16.8, 2.8, 4.5, 2.4, "next layer")
    arrow(axes, (21.5, 4), (24.4, 4))
    box(axes, 24.6, 2.8, 4.5, 2.4, "loss")
    label(axes, 12, 8.1, "removing the red channel takes its gate from 1 to 0", 9)


@picture
def reconstruction() -> None:
    """What a server does with the entries that nobody holds."""
    axes = canvas(33, 11)
    parts = (("client A", flags((0, 1, 3)), ORANGE), ("client B", flags((0, 2)), GREEN))
    for index, (name, kept, colour) in enumerate(parts):
        label(axes, 2 + 5 * index, 0.6, name, 9)
        column(axes, 1.5 + 5 * index, 1.5, kept, colour)
    for x, title, rule in (
        (12, "fill with global", lambda holders: "mean of the holders and,\nfor the others, the old value"),
        (23, "mean over holders", lambda holders: "mean of the holders only"),
    ):
        label(axes, x + 3.2, 0.6, title, 9)
        for row in range(6):
            holders = [colour for _, kept, colour in parts if kept[row]]
            if not holders:
                square(axes, x, 1.5 + row, BLUE, True)
                label(axes, x + 1.4, 2 + row, "stays as it was", 8, ha="left")
                continue
            shares = holders + [BLUE] * (len(parts) - len(holders)) if "fill" in title else holders
            shared(axes, x, 1.5 + row, shares)
        label(axes, x + 3.2, 9.2, rule(()), 8)
    label(axes, 4.5, 9.2, "filled: trained by this client", 8)


@picture
def batch_norm() -> None:
    """Statistics of a part are not those of the whole."""
    import numpy

    figure, axes = plt.subplots(figsize=(8, 2.6))
    figure.patch.set_alpha(0)
    axes.patch.set_alpha(0)
    x = numpy.linspace(-4, 6, 400)
    for mean, width, colour, name in (
        (0.2, 0.8, ORANGE, "in a submodel with half of the inputs"),
        (1.4, 1.5, BLUE, "in the full model"),
    ):
        axes.plot(x, numpy.exp(-(((x - mean) / width) ** 2) / 2) / width, color=colour, label=name)
        axes.axvline(mean, color=colour, linestyle=":", linewidth=1)
    axes.legend(frameon=False, labelcolor=GREY, fontsize=9)
    axes.set_xlabel("what one batch-norm channel receives", color=GREY)
    axes.set_yticks([])
    axes.tick_params(colors=GREY)
    for side in axes.spines.values():
        side.set_visible(False)
    figure.tight_layout()


def main() -> None:
    """Write every picture."""
    for name, draw in PICTURES.items():
        draw()
        plt.savefig(HERE / f"{name}.svg", transparent=True, metadata={"Date": None, "Creator": None})
        plt.close("all")


if __name__ == "__main__":
    main()
