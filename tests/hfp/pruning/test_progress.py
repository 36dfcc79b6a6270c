"""What is said while pruning goes on."""

from __future__ import annotations

import io
import sys
import threading
from types import SimpleNamespace

import torch
from rich.console import Console
from torch import nn

import hfp
from hfp.pruning import progress
from hfp.pruning.progress import told


def prune(progress):
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    return hfp.prune(model, torch.zeros(1, 4), hfp.Budget(ratio=0.5), progress=progress, steps=2)


def test_a_function_is_told_every_stage():
    said: list[str] = []
    prune(said.append)
    assert said[:2] == ["step 1 of 2: following channels", "step 1 of 2: scoring"]
    assert "step 2 of 2: checking with numbers" in said


def test_nothing_is_said_unless_asked_for(capsys):
    prune(None)
    prune(False)
    assert capsys.readouterr() == ("", "")


def test_where_output_is_piped_a_line_says_that_work_goes_on(monkeypatch):
    monkeypatch.setattr(progress, "BEAT", 0.01)
    stream, twice = io.StringIO(), threading.Event()
    console = Console(file=stream, width=20)
    monkeypatch.setattr(console, "print", _noting(console.print, twice, 2))
    with told(True, console) as tell:
        tell("scoring the channels of [one] model")
        twice.wait(60)
    assert "scoring the channels of [one] model (0 s so far)\n" in stream.getvalue()


def _noting(function, event, times):
    calls = []

    def noting(*args, **options):
        function(*args, **options)
        calls.append(1)
        if len(calls) >= times:
            event.set()

    return noting


def test_a_short_job_prints_nothing_where_output_is_piped(capsys):
    prune(True)
    assert capsys.readouterr().out == ""


def test_a_terminal_shows_one_line():
    stream = io.StringIO()
    with told(True, Console(file=stream, force_terminal=True, width=60)) as tell:
        tell("meeting macs=0.5")
    assert "meeting macs=0.5" in stream.getvalue()


def test_a_notebook_s_cell_has_one_line_that_is_written_over(monkeypatch):
    shown: list[str] = []
    handle = SimpleNamespace(update=lambda data, raw: shown.append(data["text/plain"]))

    def display(data, raw, display_id):
        shown.append(data["text/plain"])
        return handle

    shell = SimpleNamespace(kernel=object())
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(display=display))
    with told(True) as tell:
        tell("scoring")
    assert shown == ["pruning", "scoring", ""]
