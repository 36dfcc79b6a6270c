"""A run with patience ends early, always at the same round, and says why."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

import hfp
from hfp.commands.cli import main
from hfp.federation.ending import why_ended

SMALL = {"clients": 2, "train_images": 40, "head_start": 1, "seed": 3, "learning_rate": 1e-6}
"""A run that learns next to nothing."""
WORDS = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]


@given(
    accuracies=st.lists(st.none() | st.integers(0, 5).map(float), min_size=1, max_size=12),
    patience=st.integers(0, 5),
)
def test_it_ends_where_the_best_test_lies_as_many_rounds_back(accuracies, patience):
    best, at = -1.0, 0
    for round, accuracy in enumerate(accuracies):
        if accuracy is not None and accuracy > best:
            best, at = accuracy, round
    stalled = accuracies[-1] is not None and len(accuracies) - 1 - at >= patience > 0
    assert bool(why_ended(accuracies, 13, patience)) is stalled
    assert why_ended(accuracies, len(accuracies), patience).endswith("done")


def test_a_run_without_progress_ends_early_and_is_else_the_same():
    whole = hfp.simulate(hfp.Experiment(**SMALL, rounds=6))
    short = hfp.simulate(hfp.Experiment(**SMALL, rounds=6, patience=2))
    accuracies = [record.accuracy for record in whole.history]
    end = next(n for n in range(1, 7) if why_ended(accuracies[:n], 6, 2))
    assert end < 6
    assert [record.accuracy for record in short.history] == accuracies[:end]
    assert short.ended.startswith("no test was better than")
    assert whole.ended == "all 6 rounds are done"
    assert short.full_cost.bytes_up < whole.full_cost.bytes_up


def test_a_model_is_tested_before_the_run_ends():
    run = hfp.simulate(hfp.Experiment(**SMALL, rounds=9, patience=1, evaluate=2))
    assert run.history[-1].accuracy is not None
    assert len(run.history) % 2 == 0
    assert len(run.history) < 9


def test_an_interrupted_run_ends_where_it_would_have(tmp_path):
    experiment = hfp.Experiment(**SMALL, rounds=6, patience=2)
    through = hfp.simulate(experiment)

    class Stop(hfp.Observer):
        def state_settled(self, run_state):
            if run_state.state.round == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        hfp.simulate(experiment, resume=tmp_path, observers=[Stop()])
    resumed = hfp.simulate(experiment, resume=tmp_path)
    assert [record.accuracy for record in resumed.history] == [record.accuracy for record in through.history]
    assert resumed.ended == through.ended


def test_the_command_says_why_it_ended_and_so_does_inspect(tmp_path, capsys):
    folder = str(tmp_path / "run")
    assert main(["run", *WORDS, "--rounds=6", "--patience=2", "--out", folder, "--json"]) == 0
    shown = capsys.readouterr()
    document = json.loads(shown.out)
    assert f"ended after {len(document['history'])} of 6 rounds: {document['ended']}" in shown.err
    assert main(["inspect", folder, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ended"] == document["ended"]
    assert main(["inspect", folder]) == 0
    assert f"ended: {document['ended']}" in capsys.readouterr().out


def test_more_patience_lets_an_ended_run_go_on(tmp_path):
    ended = hfp.simulate(hfp.Experiment(**SMALL, rounds=6, patience=1), resume=tmp_path)
    on = hfp.simulate(hfp.Experiment(**SMALL, rounds=6), resume=tmp_path)
    assert len(ended.history) < len(on.history) == 6


def test_runs_of_a_comparison_have_no_patience(tmp_path, capsys):
    file = tmp_path / "c.toml"
    file.write_text("[experiment]\npatience = 2\n")
    assert main(["compare", "--file", str(file)]) == 2
    assert "patience can't be set in base" in capsys.readouterr().err
