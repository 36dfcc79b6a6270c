"""Counts what hfp works on, beside torch-pruning alone, from `timm_sweep.csv` and `zoo.csv`.

`render_pages.py` calls it, and the README shows the result, `works_on.csv`.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from data_files import Line, read

from hfp.atomic import write_atomically

HERE = Path(__file__).parent
FILE = HERE / "works_on.csv"
SWEPT = {
    "timm": "timm, the smallest model of each family",
    "torchvision": "torchvision, the smallest classifier of each family",
}
TOO = "timm and torchvision, more models and tasks"
"""The models of the zoo from packages that the sweep has as well."""


def counted() -> str:
    """Make the text of the data file: a line for each kind of model."""
    sweep, zoo = read(HERE / "timm_sweep.csv"), read(HERE / "zoo.csv")
    lines = [_line(name, [one for one in sweep if one["source"] == source], "result") for source, name in SWEPT.items()]
    packages = sorted({one["package"] for one in zoo} - SWEPT.keys(), key=lambda name: (-_size(zoo, name), name))
    lines += [_line(name, [one for one in zoo if one["package"] == name], "outcome") for name in packages]
    lines.append(_line(TOO, [one for one in zoo if one["package"] in SWEPT], "outcome"))
    text = io.StringIO()
    writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def write() -> None:
    """Write the data file, if it is not up to date."""
    text = counted()
    if not FILE.exists() or FILE.read_text(encoding="utf-8") != text:
        write_atomically(FILE, text.encode())


def _line(name: str, models: Sequence[Line], outcome: str) -> Line:
    tried = [one for one in models if one["plain"]]
    commits = sorted({commit for one in models for commit in one["commit"].split(" and ")})
    return {
        "models": name,
        "hfp": f"{sum(one[outcome] == 'pass' for one in models)} of {len(models)}",
        "plain": f"{sum(one['plain'] == 'pass' for one in tried)} of {len(tried)}" if tried else "not tried",
        "commit": " and ".join(commits),
    }


def _size(zoo: Sequence[Line], package: str) -> int:
    return sum(one["package"] == package for one in zoo)


if __name__ == "__main__":
    write()
