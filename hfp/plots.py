"""Pictures of a run. matplotlib comes with the `examples` extra; without it there is none, and the caller is told."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfp.errors import InputError
from hfp.records import MEGABYTE, RoundRecord, Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, ACCENT, SHADE = "#22313f", "#0b7285", "#e9ecef"


def save_curves(run: Run, path: Path) -> None:
    """Draw the global model's accuracy against round and against megabytes moved, as a PNG at `path`.

    Raises:
        InputError: matplotlib isn't installed.
    """
    figure = _figure(10, 4)
    by_round, by_traffic = figure.subplots(1, 2, sharey=True)
    rounds = [record.round for record in run.history]
    accuracy = [record.accuracy for record in run.history]
    megabytes = [total / MEGABYTE for total in accumulate(_moved(run.history))]
    for axes, values, label in ((by_round, rounds, "round"), (by_traffic, megabytes, "megabytes moved, up and down")):
        axes.plot(values, accuracy, color=ACCENT, marker="o", markersize=3, linewidth=1.6)
        axes.set_xlabel(label)
        _style(axes)
    by_round.set_ylabel("test accuracy, %")
    by_round.annotate(
        f"{accuracy[-1]:.1f}", (rounds[-1], accuracy[-1]), (0, 6), textcoords="offset points", ha="center"
    )
    _shade_first_phase(by_round, run.history)
    full = (run.full_cost.bytes_up + run.full_cost.bytes_down) * len(rounds) / MEGABYTE
    by_traffic.set_title(f"FedAvg would move {full:,.1f} MB in as many rounds", fontsize=9, color=INK)
    experiment = run.experiment
    figure.suptitle(
        f"{experiment.method} · {experiment.dataset} · {experiment.model} · {experiment.clients} clients · "
        f"removed {_shares(run.ratios)}",
        fontsize=11,
        color=INK,
    )
    figure.savefig(path, dpi=150)


def _figure(width: float, height: float) -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError('no picture: matplotlib is missing; pip install "hfp[examples]"') from error
    return Figure(figsize=(width, height), layout="constrained")


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


def _moved(history: Sequence[RoundRecord]) -> list[int]:
    return [record.bytes_up + record.bytes_down for record in history]


def _shares(ratios: Sequence[float]) -> str:
    return " and ".join(f"{ratio:.0%}" for ratio in sorted(set(ratios)))
