"""The examples of pruning run and say what they should."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import pytest
from data_files import read

from hfp.importance import registry as criteria

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(name: str, monkeypatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", [name, *words])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def test_prune_timm(tmp_path, monkeypatch, capsys):
    run("prune_timm.py", monkeypatch, "--model", "test_resnet", "--out", str(tmp_path / "m.safetensors"))
    shown = capsys.readouterr().out
    assert "the loaded model gives the same outputs" in shown
    assert "it is an output" in shown


def test_prune_custom_layer(monkeypatch, capsys):
    run("prune_custom_layer.py", monkeypatch)
    shown = capsys.readouterr().out
    assert "29% of the multiply-accumulates are left; output (2, 10)" in shown
    assert "2: heads = 3" in shown
    assert "1.mix: [48, 128] -> [24, 64]" in shown


def test_custom_criterion(monkeypatch, capsys):
    monkeypatch.setattr(criteria, "_ENTRIES", dict(criteria._ENTRIES))
    run("custom_criterion.py", monkeypatch)
    share = float(capsys.readouterr().out.split("%")[0])
    assert 30 < share <= 50


@pytest.mark.parametrize("name", ["custom_method.py", "custom_criterion.py"])
def test_what_a_user_adds_needs_two_import_lines(name):
    text = (EXAMPLES / name).read_text(encoding="utf-8")
    assert len(re.findall(r"^(?:import|from) hfp", text, re.MULTILINE)) == 2


def test_restore_and_continue(monkeypatch, capsys):
    run("restore_and_continue.py", monkeypatch, "--epochs", "3", "--images", "400")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5
    share = {line.split(": ", 1)[1].split(":")[0]: float(line.split("%")[0]) for line in lines}
    assert share["pruned, repaired"] > share["pruned to 40 % of its multiply-accumulates"]
    assert share["restored, trained on"] > 50


@pytest.mark.slow
def test_the_sweep_s_protocol(tmp_path, monkeypatch, capsys):
    script = "benchmarks/timm_sweep.py"
    (tmp_path / "timm.json").write_text('{"resnet": "test_resnet"}')
    with pytest.raises(SystemExit, match="0"):
        run(script, monkeypatch, "--results", str(tmp_path))
    with pytest.raises(SystemExit, match="0"):
        run(script, monkeypatch, "--results", str(tmp_path), "--data", str(tmp_path / "sweep.csv"))
    (line,) = read(tmp_path / "sweep.csv")
    assert (line["family"], line["model"], line["result"], line["plain"]) == ("resnet", "test_resnet", "pass", "")
    assert 20 < float(line["macs_left"]) < 40
    assert "pass" in capsys.readouterr().out
