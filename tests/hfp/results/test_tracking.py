"""The observers for TensorBoard and trackio write every figure of every round, once."""

from __future__ import annotations

import json
import socket
import sys
import warnings

import pytest

import hfp
from hfp.commands.cli import main
from hfp.results.tracking import numbers

SMALL = {"method": "fedavg", "clients": 2, "train_images": 40, "head_start": 1}
WORDS = ["--method", "fedavg", "--clients", "2", "--rounds", "1", "--train-images", "40", "--head-start", "1"]


def scalars(folder):
    """Read what TensorBoard would show: name to (round, value) pairs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        found = EventAccumulator(str(folder)).Reload()
    return {name: [(e.step, e.value) for e in found.Scalars(name)] for name in found.Tags()["scalars"]}


@pytest.fixture
def tensorboard():
    warnings.simplefilter("ignore")  # pytest puts the filters back
    pytest.importorskip("tensorboard", reason="the tensorboard extra is not installed")
    from hfp.results.tracking import TensorBoard

    return TensorBoard


def test_every_figure_of_every_round_is_written(tensorboard, tmp_path):
    run = hfp.simulate(hfp.Experiment(**SMALL, rounds=2, personal=1), observers=[tensorboard(tmp_path)])
    found = scalars(tmp_path)
    assert found["accuracy"] == [(r.round, pytest.approx(r.accuracy, abs=1e-3)) for r in run.history]
    assert found["personal/own"] == [(r.round, pytest.approx(r.personal.own, abs=1e-3)) for r in run.history]
    assert {"loss", "train_loss", "bytes_up", "seconds"} <= set(found)


def test_a_resumed_run_goes_on_in_the_same_curves(tensorboard, tmp_path):
    for rounds in (1, 2):
        experiment = hfp.Experiment(**SMALL, rounds=rounds)
        hfp.simulate(experiment, observers=[tensorboard(tmp_path / "curves")], resume=tmp_path / "run")
    assert [step for step, _ in scalars(tmp_path / "curves")["accuracy"]] == [1, 2]


def test_the_command_writes_into_the_folder_of_the_run(tensorboard, tmp_path):
    assert main(["run", *WORDS, "--track", "tensorboard", "--out", str(tmp_path / "run")]) == 0
    assert len(scalars(tmp_path / "run" / "tensorboard")["accuracy"]) == 1


@pytest.fixture
def logged(tmp_path, monkeypatch):
    """A function that reads what trackio logged of a run; no socket can be used, neither for asking nor for serving."""
    warnings.simplefilter("ignore")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio", reason="the trackio extra is not installed")
    from trackio import sqlite_storage

    def refused(*_):
        raise AssertionError("a socket was used")

    for name in ("connect", "bind"):
        monkeypatch.setattr(socket.socket, name, refused)
    for module in [module for name, module in sys.modules.items() if name.startswith("trackio")]:
        if hasattr(module, "TRACKIO_DIR"):  # they read the variable when they are imported
            monkeypatch.setattr(module, "TRACKIO_DIR", tmp_path / "trackio")
    return lambda name: sqlite_storage.SQLiteStorage.get_logs("hfp", name)


def test_trackio_logs_every_figure_of_every_round_without_a_socket(logged):
    from hfp.results.tracking import Trackio

    run = hfp.simulate(hfp.Experiment(**SMALL, rounds=2, personal=1), observers=[Trackio("both")])
    found = logged("both")
    assert [(line["step"], line["accuracy"]) for line in found] == [
        (r.round, round(r.accuracy, 4)) for r in run.history
    ]
    assert [line["personal/own"] for line in found] == [r.personal.own for r in run.history]
    assert {"loss", "train_loss", "bytes_up", "seconds"} <= set(found[0])


def test_a_resumed_run_goes_on_in_trackio_under_its_name(logged, tmp_path):
    from hfp.results.tracking import Trackio

    for rounds in (1, 2):
        experiment = hfp.Experiment(**SMALL, rounds=rounds)
        hfp.simulate(experiment, observers=[Trackio("on")], resume=tmp_path / "run")
    assert [line["step"] for line in logged("on")] == [1, 2]


def test_the_command_tells_both_trackers_and_prints_nothing_but_its_document(tensorboard, logged, tmp_path, capsys):
    folder = tmp_path / "run"
    assert main(["run", *WORDS, "--track", "trackio", "--track", "tensorboard", "--out", str(folder), "--json"]) == 0
    accuracy = json.loads(capsys.readouterr().out)["accuracy"]
    assert [line["accuracy"] for line in logged("run")] == [pytest.approx(accuracy, abs=1e-3)]
    assert len(scalars(folder / "tensorboard")["accuracy"]) == 1


@pytest.mark.parametrize(("tracker", "module"), [("tensorboard", "torch.utils.tensorboard"), ("trackio", "trackio")])
def test_a_missing_package_is_refused_before_anything_is_made(tracker, module, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, module, None)
    assert main(["run", *WORDS, "--track", tracker, "--out", str(tmp_path / "run")]) == 2
    assert f'pip install "hfp[{tracker}]"' in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_numbers_inside_tables_have_names_with_slashes():
    figures = {"loss": 1, "tested": True, "phase": "score", "personal": {"own": 2.5}, "accuracy": None}
    assert list(numbers(figures)) == [("loss", 1.0), ("personal/own", 2.5)]
