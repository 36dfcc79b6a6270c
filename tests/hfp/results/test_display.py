"""What is shown of a run while it is under way."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

import hfp
from hfp.results import display
from hfp.results.display import Display

SMALL = hfp.Experiment(method="fedavg", clients=2, train_images=40, rounds=2, head_start=1.0)


def test_progress_shows_the_first_lines_and_every_round(capsys):
    hfp.simulate(SMALL, progress=True)
    shown = capsys.readouterr().err
    assert "digits: 40 training" in shown
    assert "round 1" in shown and "round 2" in shown


def test_nothing_is_shown_unless_asked_for(capsys):
    hfp.simulate(SMALL)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(("beat", "lines"), [(0.0, 4), (3600.0, 0)])
def test_where_output_is_piped_a_long_round_says_how_far_it_is(monkeypatch, beat, lines):
    monkeypatch.setattr(display, "BEAT", beat)
    output = io.StringIO()
    hfp.simulate(SMALL, observers=[Display(Console(file=output, width=200))])
    assert output.getvalue().count("clients of the round that are done: ") == lines


@pytest.mark.parametrize(("installed", "lines"), [(None, 4), (object(), 0)])
def test_a_notebook_without_bars_says_how_far_a_long_round_is(monkeypatch, installed, lines):
    monkeypatch.setattr(display, "BEAT", 0.0)
    monkeypatch.setattr(display, "find_spec", lambda name: installed)
    shown: list[str] = []
    console = Console(force_jupyter=True, width=200)
    monkeypatch.setattr(console, "print", lambda text="", **_: shown.append(str(text)))
    observer = Display(console)
    monkeypatch.setattr(observer._progress, "start", lambda: None)
    hfp.simulate(SMALL, observers=[observer])
    assert sum("clients of the round that are done: " in text for text in shown) == lines
    assert observer._progress.disable is (installed is None)
