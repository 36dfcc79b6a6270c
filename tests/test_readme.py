"""Every command that the README prints is one that works: parsed here, or run by .ci/run."""

import re
import shlex

import pytest
import works_on
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


def test_what_it_works_on_is_counted_from_the_sweep_and_the_zoo():
    assert works_on.FILE.read_text(encoding="utf-8") == works_on.counted(), "python examples/benchmarks/render_pages.py"
    folder = README.parent / "examples" / "benchmarks"
    for file, column in (("timm_sweep.csv", "result"), ("zoo.csv", "outcome")):
        lines, kinds = read(folder / file), {"timm_sweep.csv": (0, 2), "zoo.csv": (2, None)}[file]
        rows = read(works_on.FILE)[slice(*kinds)]
        assert sum(int(row["hfp"].split(" of ")[1]) for row in rows) == len(lines)
        assert sum(int(row["hfp"].split(" of ")[0]) for row in rows) == sum(line[column] == "pass" for line in lines)
        tried = [row["plain"].split(" of ") for row in rows if row["plain"] != "not tried"]
        assert sum(int(count) for _, count in tried) == sum(bool(line["plain"]) for line in lines)
        assert sum(int(count) for count, _ in tried) == sum(line["plain"] == "pass" for line in lines)


def test_the_readme_is_one_screen_and_a_half():
    text = re.sub(r"<!--.*?-->", "", README.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(text.split()) <= 1000
