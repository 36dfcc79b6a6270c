"""Flags follow from the declarations of settings."""

import argparse
import json
import warnings

import pytest
from commands import refused

from hfp import Experiment
from hfp.commands.arguments.settings import GROUPS, add_settings, given_settings
from hfp.commands.cli import main
from hfp.methods import methods
from hfp.settings import settings_of

SETTINGS = settings_of(Experiment)


def parsed(*words):
    parser = argparse.ArgumentParser()
    add_settings(parser)
    return given_settings(parser.parse_args(words))


def test_every_setting_has_a_flag_a_group_and_a_whole_sentence():
    parser = argparse.ArgumentParser()
    add_settings(parser)
    destinations = {action.dest for action in parser._actions}
    for name, declared in SETTINGS.items():
        assert name in destinations
        assert declared.group in GROUPS
        assert declared.help[0].isupper()
        assert declared.help.endswith(".")


@pytest.mark.parametrize("method", methods(), ids=lambda method: method.name)
def test_every_option_of_a_method_says_in_a_sentence_what_it_is(method):
    for declared in settings_of(method).values():
        assert declared.help[0].isupper()
        assert declared.help.endswith(".")


def test_nothing_given_keeps_every_default():
    assert parsed() == {}
    assert Experiment(**parsed()) == Experiment()


def test_flags_give_values_of_the_declared_kind():
    assert parsed(
        "--clients", "4", "--ratio", "0.25,0.5,0,0.1", "--profile", "phone,board", "--augment", "--no-download",
        "--budget", "macs=0.5", "--budget", "bytes=1000", "--option", "server-momentum=0.1",
    ) == {
        "clients": 4, "ratio": (0.25, 0.5, 0.0, 0.1), "profile": ("phone", "board"), "augment": True,
        "download": False, "budget": {"macs": 0.5, "bytes": 1000}, "options": {"server_momentum": 0.1},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("flag", "value", "name"),
    [
        ("--lr", "0.5", "learning_rate"),
        ("--bs", "8", "batch_size"),
        ("--batch", "8", "batch_size"),
        ("--wd", "0.1", "weight_decay"),
        ("--local-epochs", "2", "epochs"),
        ("--num-clients", "3", "clients"),
    ],
)
def test_usual_names_of_flags_are_understood(flag, value, name):
    assert parsed(flag, value) == {name: SETTINGS[name].read(value)}


def test_the_help_tells_default_range_and_the_ratios_of_ranks(capsys):
    with pytest.raises(SystemExit):
        main(["run", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "--learning-rate, --lr NUMBER Local SGD has this learning rate. [default: 0.05; in (0, 1000000]]" in text
    assert "0: 25% and 0%; 1: 25% and 50%; 2: 50% and 75%; 3: 75% and 90%" in text
    assert [text.index(f" {group}: ") for group in GROUPS] == sorted(text.index(f" {group}: ") for group in GROUPS)


def test_what_a_user_is_warned_of_is_one_plain_line_once(capsys, monkeypatch):
    def warned_twice(_):
        for _ in range(2):
            warnings.warn("this goes\nelsewhere", FutureWarning, stacklevel=1)
        return 0

    monkeypatch.setattr("hfp.commands.listing.run_methods", warned_twice)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert main(["methods"]) == 0
    assert capsys.readouterr().err == "hfp methods: this goes elsewhere\n"


def test_a_runs_first_lines_say_what_it_assumed(capsys, tmp_path):
    words = ["run", "--train-images", "60", "--clients", "2", "--rounds", "1", "--head-start", "1", "--threads", "1"]
    assert main([*words, "--out", str(tmp_path / "out")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("data     digits: 60 training and 359 test images of 1x8x8 in 10 classes (0, 1, 2, 3")
    assert lines[1].startswith("clients  2 of ")
    assert lines[2] == "model    resnet8: 77,754 parameters, random weights drawn by seed 0"
    assert lines[3].startswith("method   ca-hfp: 1 round, 1 local epoch per round")
    assert lines[4] == "machine  cpu, 1 thread; seed 0"


def test_a_method_and_a_criterion_list_their_options(capsys):
    assert main(["methods", "fedprox", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["name"] == "fedprox"
    assert document["options"][0] == {
        "name": "mu", "default": 0.01, "allowed": "a finite number of at least 0", "unit": "",
        "help": "The proximal term has this weight.",
    }  # fmt: skip
    assert main(["criteria", "hutchinson", "--json"]) == 0
    options = {option["name"]: option for option in json.loads(capsys.readouterr().out)["options"]}
    assert options["probes"]["default"] == 1
    assert options["form"]["allowed"] == "curvature, paper, taylor"
    assert main(["methods", "fedavg"]) == 0
    assert "it has no options" in capsys.readouterr().out
    assert main(["methods", "fjord"]) == 0
    assert "temperature" in capsys.readouterr().out
    assert "did you mean fedavg" in refused(capsys, "methods", "fedavgg")
