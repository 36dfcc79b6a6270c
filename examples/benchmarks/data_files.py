"""The CSV files beside the pages: every benchmark script writes its results there, `render_pages.py` reads them.

One line is one measured figure of one setting. `commit` says which commit made it: a hash, or "before" a hash where
only the commit is known that put the figure on a page. A figure's standard deviation over seeds stands in a column
with `_spread` behind the figure's name, and is empty where there was one seed.
"""

from __future__ import annotations

import csv
import io
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hfp.atomic import write_atomically
from hfp.comparison.table import Spread

Line = dict[str, str]


def read(file: Path) -> list[Line]:
    """All lines of a data file as texts; none where there is no file."""
    if not file.exists():
        return []
    with file.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def put(file: Path, setting: Sequence[str], lines: Iterable[Mapping[str, Any]]) -> None:
    """Write measured lines into a data file.

    A line takes the place of the one that has the same values in the columns of `setting`; all others stay.
    The checked-out commit is added to every line that has none of its own.

    Args:
        file: the data file, which is made where it does not exist.
        setting: the columns that say what was measured, as opposed to the figures.
        lines: column to value; a column that a line lacks stays empty.
    """
    made = [{name: _text(value) for name, value in {"commit": commit(), **line}.items()} for line in lines]
    known = {_key(line, setting): line for line in read(file)}
    known |= {_key(line, setting): line for line in made}
    columns = list(dict.fromkeys([*setting, *(name for line in known.values() for name in line)]))
    columns.append(columns.pop(columns.index("commit")))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(known.values())
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, text.getvalue().encode())


def spread(name: str, values: Sequence[float], form: str = ".2f") -> Line:
    """The two columns of a figure: its mean and its standard deviation over seeds."""
    return both(name, Spread.of(values), form) if values else {}


def both(name: str, found: Spread | None, form: str = ".2f") -> Line:
    """The two columns of a figure whose mean and deviation are known; none of them without a figure."""
    if found is None:
        return {}
    mean, _, deviation = f"{found:{form}}".partition(" ± ")
    return {name: mean, f"{name}_spread": deviation}


def commit() -> str:
    """The commit that is checked out, with a mark if files differ from it; empty outside a repository."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--exclude", "*"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def _key(line: Mapping[str, str], setting: Sequence[str]) -> tuple[str, ...]:
    return tuple(line.get(name, "") for name in setting)


def _text(value: Any) -> str:
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
