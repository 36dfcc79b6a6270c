"""A run's configuration as Flower gives it, and the example app that writes all of it down."""

import dataclasses
import sys
from pathlib import Path

import pytest

pytest.importorskip("flwr")

from hfp import Experiment, InputError
from hfp.flower.experiments import experiment_from
from hfp.flower.settings import Settings, problem_file, settings_from

APP = Path(__file__).parents[3] / "examples" / "flower"


def example():
    import tomllib  # Python 3.11, which Flower needs too, has it

    return tomllib.loads((APP / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]


def test_the_examples_settings_are_all_there_are_and_the_defaults():
    config = example()
    names = {field.name for kind in (Experiment, Settings) for field in dataclasses.fields(kind)}
    assert {name.replace("-", "_") for name in config} == names - {"download"}
    assert experiment_from(config) == Experiment(clients=3, rounds=3)
    assert settings_from(config) == Settings(quorum=2)


def test_texts_with_several_values_are_taken_apart():
    config = {"clients": 2, "ratio": "0.25,0.5", "profile": "laptop,board", "options": "warmup=1 rule=holders"}
    read = experiment_from(config)
    assert (read.ratio, read.profile) == ((0.25, 0.5), ("laptop", "board"))
    assert dict(read.options) == {"warmup": 1, "rule": "holders"}
    assert dict(experiment_from({"budget": "macs=0.5"}).budget) == {"macs": 0.5}


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"clints": 3}, "unknown setting 'clints'; did you mean clients"),
        ({"clients": "many"}, "clients must be a whole number; found 'many'"),
        ({"ratio": "a,b"}, "ratio must be a number or a list of numbers; found 'a,b'"),
        ({"options": "warmup"}, "options must be NAME=VALUE pairs"),
    ],
)
def test_wrong_experiments_are_refused(config, reason):
    with pytest.raises(InputError, match=reason):
        experiment_from(config)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"quorum": 0}, "quorum must be at least 1"),
        ({"round-timeout": 0}, "round-timeout must be a finite number above 0; found 0"),
        ({"wait": "long"}, "wait must be a number; found 'long'"),
        ({"worker": 1}, "worker must be true or false; found 1"),
    ],
)
def test_wrong_settings_are_refused(config, reason):
    with pytest.raises(InputError, match=reason):
        settings_from(config)


def test_a_problem_is_a_module_beside_the_app(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(APP), *sys.path])
    assert problem_file(Settings(problem="my_problem")) == APP / "my_problem.py"
    with pytest.raises(InputError, match="problem 'nowhere': there is no such module"):
        problem_file(Settings(problem="nowhere"))
