"""The pages of what was measured: their tables are those of their data files, and they are short enough to be read."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from data_files import put, read, spread
from render_pages import EXAMPLES, pages, rendered, table

from hfp.errors import InputError

WORDS = 1200
PAGES = sorted([*EXAMPLES.glob("benchmarks/*.md"), *EXAMPLES.glob("paper/*.md")])
LINES = [
    {"method": "b", "rank": "2", "accuracy": "97.85", "accuracy_spread": "0.31", "gain": "+1.26", "commit": "x"},
    {"method": "a", "rank": "1", "accuracy": "1200.5", "accuracy_spread": "", "gain": "-1.26", "commit": "x"},
    {"method": "b", "rank": "1", "accuracy": "99", "accuracy_spread": "0.35", "gain": "", "commit": "x"},
]


def names(pages):
    return [page.name for page in pages]


def test_most_pages_have_a_table_that_is_made():
    assert set(PAGES) - set(pages()) == {EXAMPLES / "benchmarks" / "README.md"}


@pytest.mark.parametrize("page", pages(), ids=names(pages()))
def test_the_tables_of_a_page_are_those_of_its_data_file(page):
    assert page.read_text(encoding="utf-8") == rendered(page), "python examples/benchmarks/render_pages.py makes them"


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_a_page_is_short_and_says_what_is_not_known(page):
    text = re.sub(r"<!--.*?-->", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len([word for word in text.split() if any(letter.isalnum() for letter in word)]) <= WORDS
    if page.name != "README.md":
        assert "## What follows" in text
        assert "## What is not known" in text


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_what_a_page_refers_to_is_there(page):
    linked = re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8"))
    assert [name for name in linked if "://" not in name and not (page.parent / name).exists()] == []


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*/*.csv")), ids=lambda file: file.name)
def test_every_line_of_a_data_file_is_whole_and_has_a_commit(file):
    for line in read(file):
        assert None not in line
        assert None not in line.values()
        assert re.search(r"[0-9a-f]{7}", line["commit"])


def test_a_table_has_a_column_for_each_value_that_is_asked_for():
    request = {"file": "f", "rows": "method", "columns": "rank", "cells": "accuracy", "heading": "rank {}", "digits": 1}
    assert table({**request, "where": {"rank": [1, 2]}}, LINES) == (
        "| method | rank 1 | rank 2 |\n| --- | --- | --- |\n| a | 1,200.5 |  |\n| b | 99.0 ± 0.3 | 97.8 ± 0.3 |\n"
    )


def test_a_cell_can_show_several_figures_side_by_side():
    request = {"file": "f", "rows": "method", "columns": "rank", "cells": ["accuracy", "gain"], "where": {"rank": 2}}
    assert table(request, LINES).splitlines()[-1] == "| b | 97.85 ± 0.31 / +1.26 |"


def test_a_table_can_show_several_figures_and_keeps_their_signs():
    request = {"file": "f", "rows": ["method", "rank"], "where": {"gain": True}, "show": {"gain, points": "gain"}}
    assert table({**request, "digits": 1}, LINES) == (
        "| method | rank | gain, points |\n| --- | --- | --- |\n| b | 2 | +1.3 |\n| a | 1 | -1.3 |\n"
    )


def test_a_table_of_what_is_not_there_is_refused():
    request = {"file": "f.csv", "rows": "method", "show": {"accuracy": "accuracy"}}
    with pytest.raises(InputError, match="f.csv has no column 'seeds'; it has method, rank"):
        table({**request, "where": {"seeds": 1}}, LINES)
    with pytest.raises(InputError, match="f.csv has no lines where"):
        table({**request, "where": {"rank": 3}}, LINES)


def test_a_measured_line_takes_the_place_of_the_one_of_its_setting(tmp_path):
    file = tmp_path / "new" / "figures.csv"
    put(
        file,
        ["method", "rank"],
        [{"method": "a", "rank": 1, "accuracy": 5.0}, {"method": "b", "rank": 1, "note": "x,y"}],
    )
    put(file, ["method", "rank"], [{"rank": 1.0, "method": "a", **spread("accuracy", [1.0, 2.0])}])
    first, second = read(file)
    assert list(first) == ["method", "rank", "accuracy", "accuracy_spread", "note", "commit"]
    assert (first["accuracy"], first["accuracy_spread"], first["note"]) == ("1.50", "0.71", "")
    assert (second["note"], second["accuracy"]) == ("x,y", "")
    assert read(Path("nothing.csv")) == []
