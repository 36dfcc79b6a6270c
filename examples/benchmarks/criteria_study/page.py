"""A Markdown page whose prose is written by hand and whose tables come from results."""

from __future__ import annotations

from pathlib import Path

START, END = "<!-- tables: start -->", "<!-- tables: end -->"


def update(file: Path, tables: str) -> None:
    """Put the tables between the two marks of a page, which is made where there is none; the rest stays.

    Raises:
        ValueError: the page has no such marks.
    """
    page = file.read_text() if file.exists() else f"{START}\n{END}\n"
    if START not in page or END not in page:
        raise ValueError(f"{file} has no lines {START!r} and {END!r} to put the tables between")
    head, tail = page.split(START, 1)[0], page.split(END, 1)[1]
    part = file.with_suffix(".part")
    part.write_text(f"{head}{START}\n\n{tables}\n{END}{tail}")
    part.replace(file)
