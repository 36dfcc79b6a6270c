"""Every command that the README prints is one that works: parsed here, or run by .ci/run."""

import re
import shlex

import pytest
from data_files import read
from readme_commands import README, commands, python_blocks, setup_command

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


def test_what_the_readme_refers_to_is_there():
    linked = re.findall(r"\]\(([^)#]+)", README.read_text(encoding="utf-8"))
    assert [name for name in linked if "://" not in name and not (README.parent / name).exists()] == []


def test_counts_of_families_are_those_of_the_sweep():
    lines = read(README.parent / "examples" / "benchmarks" / "timm_sweep.csv")
    timm, torchvision = ([line for line in lines if line["source"] == source] for source in ("timm", "torchvision"))
    ours = [f"{sum(line['result'] == 'pass' for line in some)} of {len(some)} families" for some in (timm, torchvision)]
    tried = [line["plain"] for line in timm if line["plain"]]
    failed = [plain for plain in tried if plain != "pass"]
    alone = (
        f"{len(tried) - len(failed)} of the {len(tried)} tried; {failed.count('no result within 120 s')} of the "
        f"{len(failed)} others had no result in two minutes"
    )
    text = README.read_text(encoding="utf-8")
    assert f"| timm | {ours[0]} | {alone} |" in text
    assert f"| torchvision's classifiers | {ours[1]} | not tried |" in text
