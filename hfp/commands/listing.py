"""``hfp methods`` and ``hfp criteria``: what there is, where it is published, and the options of one of them.

What is bundled is told without loading torch.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from hfp import importance
from hfp.commands.printing import print_json
from hfp.importance.options import criterion_options
from hfp.methods.interface.registry import method_class, method_names
from hfp.methods.interface.sources import SourceOutline, outline
from hfp.settings import described, settings_of

if TYPE_CHECKING:
    from hfp.methods import Method

Row = dict[str, Any]


def method_rows() -> list[Row]:
    """One object per method: its name, source, and what it does."""
    return [_method_row(_told(name)) for name in method_names()]


def criterion_rows() -> list[Row]:
    """One object per criterion: its name, source, and what it needs to score."""
    return [_criterion_row(name) for name in importance.names()]


def method_options(name: str) -> list[Row]:
    """One object per option of a method: its name, default, allowed values, unit and sentence.

    Raises:
        InputError: there is no such method.
    """
    return [described(declared) for declared in settings_of(_told(name)).values()]


def run_methods(arguments: argparse.Namespace) -> int:
    """Print the methods, or one method and its options."""
    if arguments.name is None:
        return _print_all(method_rows(), arguments.json)
    return _print_one(_method_row(_told(arguments.name)), method_options(arguments.name), arguments.json)


def run_criteria(arguments: argparse.Namespace) -> int:
    """Print the criteria, or one criterion and its options."""
    if arguments.name is None:
        return _print_all(criterion_rows(), arguments.json)
    row = _criterion_row(arguments.name)
    options = [described(declared) for declared in criterion_options(arguments.name).values()]
    return _print_one(row, options, arguments.json)


def _told(name: str) -> type[Method] | type[SourceOutline]:
    return (outline(name) if name in method_names() else None) or method_class(name)


def _method_row(method: type[Method] | type[SourceOutline]) -> Row:
    return {"name": method.name, "source": method.source, "summary": method.summary}


def _criterion_row(name: str) -> Row:
    info = importance.describe(name)
    return {"name": info.name, "source": info.source, "needs": info.needs}


def _print_all(rows: list[Row], as_json: bool) -> int:
    if as_json:
        print_json(rows)
    else:
        Console().print(_table(rows, tuple(rows[0])))
    return 0


def _print_one(row: Row, options: list[Row], as_json: bool) -> int:
    if as_json:
        print_json({**row, "options": options})
        return 0
    console = Console(highlight=False)
    for key, value in row.items():
        console.print(f"{key}: {value}", markup=False)
    if options:
        console.print(_table(options, tuple(name for name in options[0] if name != "unit")))
    else:
        console.print("it has no options of its own")
    return 0


def _table(rows: Sequence[Row], columns: Sequence[str]) -> Table:
    table = Table()
    for column in columns:
        table.add_column(column, no_wrap=column == "name")
    for row in rows:
        table.add_row(*(Text(_cell(row[column])) for column in columns))
    return table


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "" if value is None else ", ".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)
