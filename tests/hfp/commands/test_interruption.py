"""Ctrl-C, SIGTERM and SIGHUP end a command in one line, at any moment."""

import signal
import subprocess
import sys
import time
from importlib.metadata import entry_points

import pytest

from hfp.commands import cli, interruption, run

WORDS = [
    "run",
    "--method",
    "fedavg",
    "--train-images",
    "40",
    "--clients",
    "2",
    "--rounds",
    "40000",
    "--head-start",
    "1",
]


def as_in_a_terminal():
    """Signals end the process, also where whoever started the tests ignores them, as nohup does."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def started(words, code="from hfp.commands.program import main; import sys; sys.exit(main())"):
    return subprocess.Popen(
        [sys.executable, "-c", code, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=as_in_a_terminal,
    )


@pytest.mark.parametrize(
    ("number", "status"),
    [
        (signal.SIGINT, 130),
        pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, 129, marks=pytest.mark.slow),
    ],
)
def test_a_signal_stops_a_run_with_its_model_and_checkpoint_written(number, status, tmp_path):
    process = started([*WORDS, "--out", str(tmp_path / "out")])
    while process.poll() is None and not (tmp_path / "out/checkpoint.safetensors").exists():
        time.sleep(0.02)
    process.send_signal(number)
    out, err = process.communicate()
    assert (process.returncode, err) == (status, "")
    assert f"to go on: hfp run --resume {tmp_path}/out" in out
    assert {"global.safetensors", "checkpoint.safetensors"} <= {path.name for path in (tmp_path / "out").iterdir()}


LOADING = """
import importlib.abc, os, signal, sys, time
class Slow(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == module:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(60)
sys.meta_path.insert(0, Slow())
from hfp.commands.program import main
sys.exit(main())
"""


@pytest.mark.parametrize("module", ["hfp.commands.cli", "argparse", "hfp.federation.experiment", "torch"])
def test_ctrl_c_while_modules_are_loaded_is_one_line(module):
    process = started(["run"], f"module = {module!r}\n{LOADING}")
    assert process.communicate() == ("", "hfp run: interrupted\n")
    assert process.returncode == 130


def test_nothing_but_what_handles_signals_is_loaded_before_they_are_handled():
    script = entry_points(group="console_scripts")["hfp"]
    code = (
        "import re, signal, sys; before = set(sys.modules)\n"
        f"import {script.module}; print(*sorted(set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    own = {"hfp", "hfp.lazy", "hfp.commands", "hfp.commands.program", "hfp.commands.interruption"}
    assert set(done.stdout.split()) <= own | {"collections.abc", "importlib", "importlib._bootstrap", "warnings"}


TWICE = """
import os, signal, sys
from hfp.commands import run
def close(*_):
    os.kill(os.getpid(), signal.SIGINT)
run._close = close
class Stops(run.Display):
    def round_ended(self, outcome):
        os.kill(os.getpid(), signal.SIGINT)
run.Display = Stops
from hfp.commands.program import main
sys.exit(main())
"""


@pytest.mark.slow
def test_a_second_ctrl_c_while_the_run_is_closed_is_one_line(tmp_path):
    process = started([*WORDS, "--out", str(tmp_path / "out")], TWICE)
    _, err = process.communicate()
    assert (process.returncode, err) == (130, "hfp run: interrupted\n")
    assert (tmp_path / "out/checkpoint.safetensors").exists()


def test_ctrl_c_while_data_is_set_up_is_one_line(tmp_path, monkeypatch, capfd):
    signals = interruption.Signals()
    monkeypatch.setattr(run, "set_up", lambda _: signals._handle(signal.SIGINT, None))
    monkeypatch.setattr(sys, "argv", ["hfp", "run"])
    assert cli.main([*WORDS, "--out", str(tmp_path / "out")], signals=signals) == 130
    assert capfd.readouterr() == ("", "hfp run: interrupted\n")
    assert list(tmp_path.iterdir()) == []
