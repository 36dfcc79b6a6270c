"""Show maps and plans to a person: in one line, or as a table in a notebook."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

_ROWS = 30  # a table shows this many at most; a model may have thousands of tensors


def share(part: int, whole: int) -> str:
    """Return the part as a percentage of the whole, which is 100 % for all of nothing."""
    return f"{part / whole if whole else 1:.1%}".replace("%", " %")


def html_table(caption: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return an HTML table with the first rows and the number of those that are left out."""
    cells = "".join(f"<tr>{''.join(f'<td>{escape(str(cell))}</td>' for cell in row)}</tr>" for row in rows[:_ROWS])
    if len(rows) > _ROWS:
        cells += f'<tr><td colspan="{len(columns)}">and {len(rows) - _ROWS:,} more</td></tr>'
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    return f"<table><caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{cells}</tbody></table>"
