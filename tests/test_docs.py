"""Every block of code on the documentation's pages runs; every command on them is one that exists."""

from __future__ import annotations

import json
import re
import shlex
import warnings
from pathlib import Path

import pytest

from hfp.commands.cli import build_parser, main
from hfp.federation.records import ClientRecord, RoundRecord
from hfp.reconstruct.files.document import Document

DOCS = Path(__file__).parents[1] / "docs"
RUN_WHOLE = ("how-to/run-result.md",)
"""Pages whose commands leave what their Python reads: there the commands are run as well, in the page's order."""
PAGES = sorted(page for page in DOCS.rglob("*.md") if not {"_build", "generated"} & set(page.parts))


FENCED = re.MULTILINE | re.DOTALL


def commands(block: str) -> list[list[str]]:
    """Read the arguments of every hfp command in a block."""
    lines = (shlex.split(line, comments=True) for line in block.replace("\\\n", " ").splitlines())
    return [words[1:] for words in lines if words and words[0] == "hfp"]


WORKERS = ("cores",)
"""Pages whose Python starts processes, each of which loads PyTorch."""
PACKAGES = {
    "transformers": "transformers",
    "language-folder": "transformers",
    "ultralytics": "ultralytics",
    "diffusers": "diffusers",
}
"""The package that a page needs, by the page's name; the page is skipped where it is not installed."""


def blocks(page: Path, language: str) -> list[str]:
    """Read the fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), FENCED)


def name_of(page: Path) -> str:
    return str(page.relative_to(DOCS))


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=[pytest.mark.slow] * (page.stem in WORKERS), id=name_of(page))
        for page in PAGES
        if blocks(page, "python")
    ],
)
def test_python_on_a_page_runs_from_top_to_bottom(page, tmp_path, monkeypatch):
    if page.stem in PACKAGES:
        warnings.simplefilter("ignore")  # pytest puts the filters back
        pytest.importorskip(PACKAGES[page.stem], exc_type=ImportError)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "page"}
    whole = name_of(page) in RUN_WHOLE
    for language, code in re.findall(r"^```(python|bash)\n(.*?)^```$", page.read_text(encoding="utf-8"), FENCED):
        if language == "python":
            exec(compile(code, str(page), "exec"), names)
        elif whole:
            assert [main(words) for words in commands(code)] == [0] * len(commands(code)), code


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


def first_cells(page: Path) -> set[str]:
    """Read the names in the first cells of a page's tables."""
    cells = re.findall(r"^\| (`[^|]*`) \|", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}


def test_page_of_metrics_has_every_column_and_no_other():
    client = ClientRecord(client=0, ratio=0.5, samples=1, bytes_down=1, device="phone", seconds_down=0.1)
    record = RoundRecord(1, "random", None, None, (client,), (0, 0), 0.0).as_dict()
    measured = {"personal", "diagnostics", "undefended", "epsilon"}
    columns = {*record, *record["clients"][0], *measured}
    assert first_cells(DOCS / "reference" / "metrics.md") == columns


def test_page_of_the_file_format_has_every_key_and_no_other():
    document = Document({}, {}, {}, {}, None)
    assert first_cells(DOCS / "reference" / "file-format.md") == set(json.loads(document.dump()))
