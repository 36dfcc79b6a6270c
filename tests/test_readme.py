"""Every command that the README prints is one that works: parsed here, or run by .ci/run."""

import shlex

import pytest
from readme_commands import commands, python_blocks, setup_command

from hfp.commands.cli import COMMANDS, build_parser


def test_two_setup_commands_and_no_more():
    installs = [command for command in commands() if "pip install" in command]
    assert sorted(installs) == sorted([setup_command("run"), setup_command("test")])


@pytest.mark.parametrize("command", [part.strip() for line in commands() for part in line.split("&&")])
def test_every_command_is_one_that_exists(command):
    words = shlex.split(command)
    if words[0] == "hfp":
        build_parser(words[1:]).parse_args(words[1:])
        assert words[1] in COMMANDS
    else:
        assert words[0] in ("pip", "pytest", "python", "git", "cd")


@pytest.mark.parametrize("code", python_blocks())
def test_python_of_the_readme_runs(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
