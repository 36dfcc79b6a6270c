"""Draws pictures of a run with matplotlib, which comes with the `examples` extra; without it the caller is told."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfp.atomic import whole_file
from hfp.errors import InputError, file_errors
from hfp.federation.diagnostics import Diagnostics
from hfp.federation.records import MEGABYTE, RoundRecord, Run, megabytes_so_far

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, ACCENT, SHADE = "#22313f", "#0b7285", "#e9ecef"
CURVE: Mapping[str, Any] = {"marker": "o", "markersize": 3, "linewidth": 1.6}

MOST_NAMES = 30
"""More layers than this would not be legible beside a picture, so that only some of them are named."""


def save_curves(run: Run, path: Path) -> None:
    """Draw the global model's accuracy against round and against megabytes moved, as a PNG at `path`.

    Raises:
        InputError: matplotlib isn't installed, or the file can't be written.
    """
    figure = make_figure(10, 4)
    by_round, by_traffic = figure.subplots(1, 2, sharey=True)
    moved = megabytes_so_far((record.bytes_up + record.bytes_down, sum(record.statistics)) for record in run.history)
    tested = [place for place in zip(run.history, moved, strict=True) if place[0].accuracy is not None]
    rounds, megabytes = [record.round for record, _ in tested], [total for _, total in tested]
    accuracy = [record.accuracy for record, _ in tested]
    for axes, values in ((by_round, rounds), (by_traffic, megabytes)):
        axes.plot(values, accuracy, color=ACCENT, **CURVE)
        _style(axes)
    _label_rounds(by_round)
    by_round.set_ylabel("test accuracy, %")
    by_traffic.set_xlabel("megabytes moved, up and down")
    for place in list(zip(rounds, accuracy, strict=True))[-1:]:
        by_round.annotate(f"{place[1]:.1f}", place, (0, 6), textcoords="offset points", ha="center")
    _shade_first_phase(by_round, run.history)
    full = (run.full_cost.bytes_up + run.full_cost.bytes_down) / MEGABYTE
    by_traffic.set_title(f"FedAvg would move {full:,.1f} MB in as many rounds", fontsize=9, color=INK)
    experiment = run.experiment
    title = (
        f"{experiment.method} · {experiment.dataset_name} · {experiment.model_name} · {experiment.clients} clients · "
        f"ratio {_shares(run.ratios)}"
    )
    figure.suptitle(literal(title), fontsize=11, color=INK)
    _save(figure, path)


def save_diagnostics(run: Run, path: Path) -> None:
    """Draw a run's diagnostics against round, as a PNG at `path`; rounds without replies have none.

    Raises:
        InputError: matplotlib isn't installed, or the file can't be written.
    """
    measured = [(record.round, record.diagnostics) for record in run.history if record.diagnostics is not None]
    figure = make_figure(12, 6)
    panels = figure.subplots(2, 3).flatten()
    lines: tuple[tuple[str, dict[str, Sequence[float | None]]], ...] = (
        ("gradient variance σ² of a client's steps", {"σ²": [d.gradient_variance for _, d in measured]}),
        ("dissimilarity ζ² of clients", {"ζ²": [d.dissimilarity for _, d in measured]}),
        ("pruning perturbation ‖e‖²", {"‖e‖²": [d.perturbation for _, d in measured]}),
        (
            "change of the loss by pruning",
            {"predicted": [d.predicted for _, d in measured], "actual": [d.actual for _, d in measured]},
        ),
        ("overlap of two clients' submodels", {"overlap": [d.overlap for _, d in measured]}),
    )
    for axes, (title, curves) in zip(panels, lines, strict=False):
        _draw(axes, title, [round for round, _ in measured], curves)
    _draw_coverage(panels[-1], measured)
    _save(figure, path)


def _draw(axes: Axes, title: str, rounds: Sequence[int], curves: Mapping[str, Sequence[float | None]]) -> None:
    for (label, values), color in zip(curves.items(), (ACCENT, INK), strict=False):
        points = [(round, value) for round, value in zip(rounds, values, strict=True) if value is not None]
        axes.plot([x for x, _ in points], [y for _, y in points], color=color, label=label, **CURVE)
    axes.set_title(title, fontsize=10, color=INK)
    axes.margins(x=0.02)
    _style(axes)
    _label_rounds(axes)
    if all(value is None for values in curves.values() for value in values):
        _say_unmeasured(axes)
    elif len(curves) > 1:
        axes.legend(frameon=False, fontsize=9)


def _draw_coverage(axes: Axes, measured: Sequence[tuple[int, Diagnostics]]) -> None:
    """Draw the share of channels that some client trained, with a row per coupled group and a column per round.

    In a round without replies nobody trained anything.
    """
    axes.set_title("channels that somebody trained, by layer", fontsize=10, color=INK)
    _label_rounds(axes)
    found = {round: diagnostics.coverage for round, diagnostics in measured}
    names = list(measured[0][1].coverage) if measured else []
    if not names:
        _say_unmeasured(axes)
        return
    first, last = measured[0][0], measured[-1][0]
    shares = [[found.get(round, {}).get(name, 0.0) for round in range(first, last + 1)] for name in names]
    extent = (first - 0.5, last + 0.5, len(names) - 0.5, -0.5)
    image = axes.imshow(shares, aspect="auto", vmin=0, vmax=1, cmap="viridis", extent=extent, interpolation="nearest")
    axes.figure.colorbar(image, ax=axes)
    step = math.ceil(len(names) / MOST_NAMES)
    axes.set_yticks(range(0, len(names), step), map(literal, names[::step]), fontsize=6)


def make_figure(width: float, height: float) -> Any:
    """Make an empty figure of so many inches.

    Raises:
        InputError: matplotlib isn't installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError('matplotlib is missing; pip install "hfp[examples]"') from error
    return Figure(figsize=(width, height), layout="constrained")


def literal(text: str) -> str:
    """Return the text so that matplotlib reads no mathematics into it."""
    return text.replace("$", r"\$")


def _save(figure: Any, path: Path) -> None:
    """Write a figure whole or not at all; a picture that was there before is untouched if that fails."""
    with file_errors(f"{path} can't be written"), whole_file(path) as unfinished:
        figure.savefig(unfinished, format="png", dpi=150)


def _label_rounds(axes: Axes) -> None:
    axes.set_xlabel("round")
    axes.locator_params(axis="x", integer=True, min_n_ticks=1)


def _say_unmeasured(axes: Axes) -> None:
    axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", va="center", color=INK)
    axes.set(xticks=[], yticks=[])


def _style(axes: Axes) -> None:
    axes.grid(color=SHADE)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _shade_first_phase(axes: Axes, history: Sequence[RoundRecord]) -> None:
    first = history[0].phase
    last = next((record.round for record in history if record.phase != first), None)
    if last is not None:
        axes.axvspan(history[0].round - 0.5, last - 0.5, color=SHADE, zorder=0, label=f"phase: {first}")
        axes.legend(loc="lower right", frameon=False, fontsize=9)


def _shares(ratios: Sequence[float]) -> str:
    shown = [f"{ratio:.0%}" for ratio in sorted(set(ratios))]
    return " and ".join(shown) if len(shown) < 3 else f"{shown[0]} to {shown[-1]}"
