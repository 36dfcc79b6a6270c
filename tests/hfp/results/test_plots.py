"""Pictures of a run: their axes are those of its figures, also where there are few of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hfp.federation.experiment import Experiment
from hfp.federation.records import ClientRecord, Cost, RoundRecord, Run
from hfp.results import plots
from hfp.results.plots import save_curves

pytest.importorskip("matplotlib", reason="the examples extra is not installed")


def run_of(accuracies: list[float | None], **figures: Any) -> Run:
    client = ClientRecord(0, 0.5, 10, 2_000_000, "phone", 1.0, bytes_up=1_000_000)
    history = tuple(
        RoundRecord(number, "train", accuracy, None, (client,), (400_000, 100_000), 1.0, figures=figures)
        for number, accuracy in enumerate(accuracies, 1)
    )
    return Run(Experiment(rounds=len(history)), history, {}, Cost(1, 1, 1, 1, 1, 1, 1.0))


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that are drawn."""
    figures, make = [], plots.make_figure

    def kept(width: float, height: float) -> Any:
        figures.append(make(width, height))
        return figures[-1]

    monkeypatch.setattr(plots, "make_figure", kept)
    return figures


def test_the_curve_against_traffic_ends_at_the_bytes_of_the_run(drawn: list[Any], tmp_path: Path) -> None:
    run = run_of([10.0, None, 30.0])
    save_curves(run, tmp_path / "curves.png")
    by_traffic = drawn[0].axes[1].lines[0].get_xdata()
    assert list(by_traffic) == [3.5, 9.5]
    assert by_traffic[-1] == (run.bytes_up + run.bytes_down) / 1e6
