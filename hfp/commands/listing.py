"""``hfp methods`` and ``hfp criteria``: what there is, and where it is published."""

from __future__ import annotations

import argparse
import json

from rich.console import Console
from rich.table import Table

from hfp import importance
from hfp.methods import methods

Row = dict[str, str]


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments, the same for both lists."""
    parser.add_argument("--json", action="store_true", help="print a list of objects")


def method_rows() -> list[Row]:
    """One object a method: name, source, what it does."""
    return [{"name": m.name, "source": m.source, "summary": m.summary} for m in methods()]


def criterion_rows() -> list[Row]:
    """One object a criterion: name, source, what it needs to score."""
    described = (importance.describe(name) for name in importance.names())
    return [{"name": info.name, "source": info.source, "needs": info.needs} for info in described]


def run_methods(arguments: argparse.Namespace) -> int:
    """Print the methods."""
    return _print(method_rows(), arguments.json)


def run_criteria(arguments: argparse.Namespace) -> int:
    """Print the criteria."""
    return _print(criterion_rows(), arguments.json)


def _print(rows: list[Row], as_json: bool) -> int:
    if as_json:
        print(json.dumps(rows))
        return 0
    table = Table()
    for column in rows[0]:
        table.add_column(column, no_wrap=column == "name")
    for row in rows:
        table.add_row(*row.values())
    Console().print(table)
    return 0
