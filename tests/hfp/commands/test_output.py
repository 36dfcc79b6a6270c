"""What the program does where its output, or a file, can't be written or shown."""

import os
import subprocess
import sys

import pytest
from commands import refused


def hfp(*words, **settings):
    done = subprocess.run(
        [sys.executable, "-m", "hfp", *words], stderr=subprocess.PIPE, text=True, check=False, **settings
    )
    return done.returncode, done.stderr


def test_a_reader_of_the_output_that_stops_ends_the_command_without_a_word():
    reader, writer = os.pipe()
    os.close(reader)
    assert hfp("methods", "--json", stdout=writer) == (1, "")
    os.close(writer)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no device that is always full")
@pytest.mark.parametrize("words", [["methods"], ["methods", "--json"]], ids=" ".join)
def test_an_output_that_is_full_is_one_line(words):
    with open("/dev/full", "w") as full:
        status, line = hfp(*words, stdout=full)
    assert status in (1, 2)
    assert line.count("\n") == 1
    assert line.endswith(": No space left on device\n")


def test_help_can_be_shown_by_a_terminal_that_has_ascii_alone():
    settings = {"stdout": subprocess.DEVNULL, "env": {**os.environ, "PYTHONIOENCODING": "ascii"}}
    assert hfp("run", "--help", **settings) == (0, "")


LONG = "x" * 300


@pytest.mark.parametrize(
    "words",
    [
        ["inspect", LONG],
        ["predict", "run", LONG],
        ["methods", LONG],
        ["extract", LONG, "--out", "m.safetensors"],
        ["run", "--clients-file", LONG],
        ["run", "--weights", LONG],
        ["run", "--dataset", "cifar10", "--data-root", LONG],
        ["prune", "resnet8", "--macs", "0.5", "--out", LONG],
    ],
    ids=lambda words: words[0],
)
def test_a_name_that_is_too_long_for_a_file_is_one_line(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert LONG in refused(capsys, *words)
