"""Experiments and runs as a person sees them: in a prompt, and in a notebook."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from hfp import Experiment, Run
from hfp.federation.records import Cost, RoundRecord


def run_of(accuracies: list[float | None], **settings: object) -> Run:
    history = tuple(
        RoundRecord(
            round=number, phase="train", accuracy=accuracy, loss=None, clients=(), statistics=(0, 0), seconds=1.0
        )
        for number, accuracy in enumerate(accuracies, 1)
    )
    return Run(Experiment(rounds=max(len(history), 1), **settings), history, {}, Cost(0, 0, 0, 0, 0, 0, 0.0))


def test_an_experiment_shows_the_settings_that_differ_from_the_defaults():
    assert repr(Experiment()) == "Experiment()"
    shown = repr(Experiment(method="fedprox", options={"mu": 0.1}, clients=3, ratio=[0.0, 0.5, 0.5]))
    assert shown == "Experiment(method='fedprox', options={'mu': 0.1}, clients=3, ratio=(0.0, 0.5, 0.5))"


@given(st.integers(1, 9), st.floats(0.01, 9.0), st.sampled_from(["local", "batch"]), st.none() | st.floats(0, 0.9))
def test_what_an_experiment_shows_makes_the_same_experiment(clients, alpha, batch_norm, ratio):
    experiment = Experiment(clients=clients, alpha=alpha, batch_norm=batch_norm, ratio=ratio)
    assert eval(repr(experiment)) == experiment


def test_an_experiment_names_a_model_that_was_given():
    assert repr(Experiment(model=nn.Linear(2, 2))) == "Experiment(model='python:Linear')"


def test_an_experiment_is_a_table_in_a_notebook_with_the_meaning_of_what_differs():
    html = Experiment(clients=3)._repr_html_()
    assert "<td>clients</td><td>3</td><td>The federation has this many clients.</td>" in html
    assert "rounds" not in html


def test_a_run_is_one_line():
    assert repr(run_of([20.0, 71.234])) == "Run(ca-hfp on digits, resnet8: 2 rounds, 71.23 %)"
    assert repr(run_of([50.0], method="fedavg")) == "Run(fedavg on digits, resnet8: 1 round, 50.00 %)"


def test_a_run_in_a_notebook_has_a_row_per_tested_round():
    html = run_of([20.0, None, 71.234])._repr_html_()
    assert html.count("<tr><td>") == 2
    assert "<td>3</td><td>71.23</td>" in html
    assert "<td>2</td>" not in html


@given(st.integers(1, 500))
def test_a_long_run_fits_a_screen_and_ends_with_its_last_round(rounds):
    html = run_of([float(number % 100) for number in range(rounds)])._repr_html_()
    assert html.count("<tr><td>") <= 21
    assert html.rindex(f"<tr><td>{rounds}</td>") == html.rindex("<tr><td>")
