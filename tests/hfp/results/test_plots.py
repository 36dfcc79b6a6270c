"""Pictures of a run: their axes are those of its figures, also where there are few of them."""

from __future__ import annotations

import dataclasses
import errno
from pathlib import Path
from typing import Any

import pytest

from hfp.errors import InputError
from hfp.federation.diagnostics import Diagnostics
from hfp.federation.experiment import Experiment
from hfp.federation.records import ClientRecord, Cost, RoundRecord, Run
from hfp.results import plots
from hfp.results.plots import save_curves, save_diagnostics

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


def diagnostics(**values: Any) -> Diagnostics:
    plain = {"gradient_variance": 1.0, "dissimilarity": 2.0, "perturbation": 3.0, "predicted": None, "actual": 0.5}
    shares = {f"layer {index}": 0.5 for index in range(70)}
    return Diagnostics(**{**plain, "overlap": None, "coverage": shares, "recent": shares, **values})


@pytest.mark.parametrize("rounds", [1, 2, 3])
def test_rounds_are_whole_numbers_on_every_axis(rounds: int, drawn: list[Any], tmp_path: Path) -> None:
    run = run_of([10.0] * rounds, diagnostics=diagnostics(overlap=0.5, predicted=0.1))
    save_curves(run, tmp_path / "curves.png")
    save_diagnostics(run, tmp_path / "diagnostics.png")
    by_round = [axes for figure in drawn for axes in figure.axes if axes.get_xlabel() == "round"]
    assert len(by_round) == 1 + 6
    for axes in by_round:
        low, high = axes.get_xlim()
        ticks = [tick for tick in axes.get_xticks() if low <= tick <= high]
        assert ticks
        assert all(float(tick).is_integer() for tick in ticks)


def test_one_round_is_seen_and_what_was_not_measured_is_said(drawn: list[Any], tmp_path: Path) -> None:
    save_diagnostics(run_of([10.0], diagnostics=diagnostics()), tmp_path / "diagnostics.png")
    panels = {axes.get_title(): axes for axes in drawn[0].axes}
    assert panels["dissimilarity ζ² of clients"].lines[0].get_marker() == "o"
    assert [text.get_text() for text in panels["overlap of two clients' submodels"].texts] == ["not measured"]
    assert [text.get_text() for text in panels["dissimilarity ζ² of clients"].texts] == []


def test_a_run_without_replies_has_pictures_that_say_so(drawn: list[Any], tmp_path: Path) -> None:
    save_diagnostics(run_of([10.0]), tmp_path / "diagnostics.png")
    assert [[text.get_text() for text in axes.texts] for axes in drawn[0].axes] == [["not measured"]] * 6


def test_rounds_without_replies_have_their_columns_in_the_picture_of_coverage(drawn: list[Any], tmp_path: Path) -> None:
    run = run_of([10.0, 20.0, 30.0], diagnostics=diagnostics())
    missed = dataclasses.replace(run.history[1], figures={})
    save_diagnostics(
        dataclasses.replace(run, history=(run.history[0], missed, run.history[2])), tmp_path / "diagnostics.png"
    )
    (image,) = (axes.images[0] for axes in drawn[0].axes if axes.images and axes.get_xlabel() == "round")
    assert image.get_array()[0].tolist() == [0.5, 0.0, 0.5]


def test_layers_are_named_as_far_as_their_names_can_be_read(drawn: list[Any], tmp_path: Path) -> None:
    save_diagnostics(run_of([10.0], diagnostics=diagnostics()), tmp_path / "diagnostics.png")
    names = [label.get_text() for label in drawn[0].axes[5].get_yticklabels()]
    assert len(names) <= plots.MOST_NAMES
    assert names[:2] == ["layer 0", "layer 3"]


def test_dollars_in_names_are_no_mathematics(drawn: list[Any], tmp_path: Path) -> None:
    run = run_of([10.0], diagnostics=diagnostics(coverage={r"$\no$": 0.5}))
    run = dataclasses.replace(run, experiment=dataclasses.replace(run.experiment, model=r"my$\no$:net"))
    save_curves(run, tmp_path / "curves.png")
    save_diagnostics(run, tmp_path / "diagnostics.png")
    assert all(picture.stat().st_size for picture in tmp_path.iterdir())


def test_many_shares_are_told_by_the_least_and_the_greatest(drawn: list[Any], tmp_path: Path) -> None:
    run = run_of([10.0])
    clients = tuple(dataclasses.replace(run.history[0].clients[0], ratio=ratio / 10) for ratio in range(1, 9))
    many = dataclasses.replace(run, history=(dataclasses.replace(run.history[0], clients=clients),))
    save_curves(many, tmp_path / "curves.png")
    assert drawn[0].get_suptitle().endswith("ratio 10% to 80%")


@pytest.mark.parametrize("save", [save_curves, save_diagnostics])
def test_a_picture_that_fails_half_way_leaves_the_old_one_and_nothing_else(
    save: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(_: Any, target: Path, **__: Any) -> None:
        target.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    run, path = run_of([10.0], diagnostics=diagnostics()), tmp_path / "run.png"
    save(run, path)
    before = path.read_bytes()
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", half)
    with pytest.raises(InputError, match=r"run.png can't be written: No space left"):
        save(run, path)
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("run.png", before)]
