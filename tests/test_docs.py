"""Every block of code on the documentation's pages runs; every command on them is one that exists."""

from __future__ import annotations

import re
import shlex
import warnings
from pathlib import Path

import pytest

from hfp.commands.cli import build_parser

DOCS = Path(__file__).parents[1] / "docs"
PAGES = sorted(page for page in DOCS.rglob("*.md") if "_build" not in page.parts)


PACKAGES = ("transformers", "ultralytics", "diffusers")
"""Each has a page of its name, which is skipped where it is not installed."""


def blocks(page: Path, language: str) -> list[str]:
    """Read the fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def name_of(page: Path) -> str:
    return str(page.relative_to(DOCS))


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=name_of)
def test_python_on_a_page_runs_from_top_to_bottom(page, tmp_path, monkeypatch):
    if page.stem in PACKAGES:
        warnings.simplefilter("ignore")  # pytest puts the filters back
        pytest.importorskip(page.stem, exc_type=ImportError)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "page"}
    for code in blocks(page, "python"):
        exec(compile(code, str(page), "exec"), names)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "bash")], ids=name_of)
def test_commands_on_a_page_are_ones_that_exist(page):
    for block in blocks(page, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words and words[0] == "hfp":
                build_parser(words[1:]).parse_args(words[1:])
            elif words:
                assert words[0] in ("pip", "pytest", "python", "git", "cd", "export", "flwr"), line


def test_no_page_is_longer_than_two_screens():
    long = {name_of(page): len(page.read_text(encoding="utf-8").split()) for page in PAGES}
    assert {name: words for name, words in long.items() if words > 900} == {}
