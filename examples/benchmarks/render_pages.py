"""Make the tables and figures of the pages from the data files beside them.

    python examples/benchmarks/render_pages.py              # writes the pages whose tables are not up to date
    python examples/benchmarks/render_pages.py --figures    # draws the figures as well (needs matplotlib)
    python examples/benchmarks/render_pages.py --check      # changes nothing and fails if a page is not up to date

A page says in a comment, in TOML, which lines of which file a table shows:

    <!-- table
    file = "compare.csv"
    where = {dataset = "digits", rank = [1, 2]}
    rows = "method"
    columns = "rank"
    heading = "rank {}"
    cells = "accuracy"
    digits = 1
    -->

The table comes after the comment. `where` says which values a column may have, in the order of the table's rows; `true`
stands for any value but none. `rows` names the column (or the list of columns)
of the data file that a row of the table stands for. With `columns` there is a column of the table for each of that
column's values and `cells` names the figure, or the list of those to put side by side; without it, `show` maps
headings to figures. `labels` gives the headings
of the first columns, and `digits` rounds the figures.

A comment that begins with `figure` asks for a line chart in the file `out`, with the columns `x` and `y`, a curve for
each value of `series`, a `title`, and what the two `axes` show. Without `x` the values of `y` are drawn in their order.
With `bars` there is a bar for each value of that column in place of curves: `x` is its length, `low` and `high` are the
ends of a line on it, and `axis` says what the values are.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import data_files
import works_on
from data_files import read

from hfp.atomic import write_atomically
from hfp.errors import InputError
from hfp.results.charts import Bar, Line, bar_chart, line_chart, standalone

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

EXAMPLES = Path(__file__).parents[1]
FIGURE = re.compile(r"<!-- figure\n((?:.*\n)*?)-->\n")
REGION = re.compile(r"(<!-- table\n((?:.*\n)*?)-->\n)((?:\|.*\n)*)")


def main() -> None:
    """Write the pages that are out of date, or tell of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing, and fail where a page would change")
    parser.add_argument("--figures", action="store_true", help="draw the figures as well")
    given = parser.parse_args()
    if not given.check:
        works_on.write()
    old = {page: rendered(page) for page in pages() if page.read_text(encoding="utf-8") != rendered(page)}
    for page, text in old.items():
        print(f"{page}: {'its tables are not those of its data' if given.check else 'written'}")
        if not given.check:
            write_atomically(page, text.encode())
    for page in pages() if given.figures else ():
        draw(page)
    sys.exit(1 if old and given.check else 0)


def pages() -> list[Path]:
    """All pages that have tables made from data."""
    own = [EXAMPLES.parent / "README.md", *EXAMPLES.parent.glob("docs/ideas/*.md")]
    found = [*own, *EXAMPLES.glob("benchmarks/*.md"), *EXAMPLES.glob("paper/*.md")]
    return sorted(page for page in found if "<!-- table\n" in page.read_text(encoding="utf-8"))


def rendered(page: Path, text: str | None = None) -> str:
    """The page's text with its tables made anew, or this `text` as the page's.

    Raises:
        InputError: a table asks for a file, a column or lines that do not exist.
    """

    def region(match: re.Match[str]) -> str:
        request = tomllib.loads(match[2])
        lines = read(page.parent / request["file"])
        if not lines:
            raise InputError(f"{page}: there are no lines in {request['file']}, which a table is to be made from")
        return match[1] + table(request, lines)

    return REGION.sub(region, page.read_text(encoding="utf-8") if text is None else text)


def table(request: Mapping[str, Any], lines: list[data_files.Line]) -> str:
    """A Markdown table of the lines that a request asks for.

    Raises:
        InputError: there is no such column, or no such line.
    """
    rows = _texts(request["rows"])
    figures = _texts(request["cells"]) if "columns" in request else list(request["show"].values())
    mine = selected(request, lines, [*rows, *figures, *_texts(request.get("columns", []))])
    columns = _pivoted(request, mine) if "columns" in request else _shown(request)
    body: dict[tuple[str, ...], list[data_files.Line]] = {}
    for line in mine:
        body.setdefault(tuple(line[name] for name in rows), []).append(line)
    made = [[*_texts(request.get("labels", rows)), *columns], ["---"] * (len(rows) + len(columns))]
    made += [[*key, *(cell(group) for cell in columns.values())] for key, group in body.items()]
    return "".join("| " + " | ".join(row) + " |\n" for row in made)


def selected(request: Mapping[str, Any], lines: list[data_files.Line], columns: list[str]) -> list[data_files.Line]:
    """The lines that a request's `where` asks for, in the order of its values.

    Raises:
        InputError: there is no such column, or no such line.
    """
    where = {name: wanted if wanted is True else _texts(wanted) for name, wanted in request.get("where", {}).items()}
    for name in [*where, *columns]:
        if name not in lines[0]:
            raise InputError(f"{request['file']} has no column {name!r}; it has {', '.join(lines[0])}")
    mine = [line for line in lines if all(line[n] and (w is True or line[n] in w) for n, w in where.items())]
    if not mine:
        raise InputError(f"{request['file']} has no lines where {where}")
    for name, wanted in reversed(where.items()):
        if wanted is not True:
            mine.sort(key=lambda line: wanted.index(line[name]))
    return mine


def draw(page: Path) -> None:
    """Draw the figures that a page asks for.

    Raises:
        InputError: there is no such column or line, or matplotlib is missing.
    """
    for match in FIGURE.finditer(page.read_text(encoding="utf-8")):
        request = tomllib.loads(match[1])
        lines = read(page.parent / request["file"])
        chart = _bars(request, lines) if "bars" in request else _curves(request, lines)
        write_atomically(page.parent / request["out"], standalone(chart).encode())
        print(f"{page.parent / request['out']}: drawn")


def _curves(request: Mapping[str, Any], lines: list[data_files.Line]) -> str:
    across, up, series = request.get("x"), request["y"], request["series"]
    lines = selected(request, lines, [up, series, *_texts(across or [])])
    curves: dict[str, list[tuple[float, ...]]] = {}
    for line in lines if across else sorted(lines, key=lambda line: float(line[up])):
        points = curves.setdefault(line[series], [])
        points.append((float(line[across]) if across else len(points) + 1.0, float(line[up])))
    drawn = [Line(name, index, sorted(points)) for index, (name, points) in enumerate(curves.items())]
    return line_chart(request["title"], *request["axes"], drawn, zero=True, legend=len(drawn) > 1)


def _bars(request: Mapping[str, Any], lines: list[data_files.Line]) -> str:
    name, length = request["bars"], request["x"]
    ends = [request[end] for end in ("low", "high") if end in request]
    drawn = [
        Bar(line[name], float(line[length]), *(float(line[end]) for end in ends))
        for line in selected(request, lines, [name, length, *ends])
    ]
    return bar_chart(request["title"], request["axis"], drawn)


def _pivoted(
    request: Mapping[str, Any], lines: list[data_files.Line]
) -> dict[str, Callable[[list[data_files.Line]], str]]:
    """A column of the table for each value of a column of the data."""
    across, figures = request["columns"], _texts(request["cells"])

    def one(value: str) -> Callable[[list[data_files.Line]], str]:
        return lambda group: " ".join(
            " / ".join(_cell(line, figure, request) for figure in figures) for line in group if line[across] == value
        )

    values = dict.fromkeys(line[across] for line in lines)
    return {request.get("heading", "{}").format(value): one(value) for value in values}


def _shown(request: Mapping[str, Any]) -> dict[str, Callable[[list[data_files.Line]], str]]:
    def one(figure: str) -> Callable[[list[data_files.Line]], str]:
        return lambda group: " ".join(filter(None, (_cell(line, figure, request) for line in group)))

    return {heading: one(figure) for heading, figure in request["show"].items()}


def _cell(line: data_files.Line, figure: str, request: Mapping[str, Any]) -> str:
    """A figure, with its deviation where there is one."""
    found = (_rounded(line[name], request) for name in (figure, f"{figure}_spread") if line.get(name))
    return " ± ".join(found).replace("|", "\\|")


def _rounded(text: str, request: Mapping[str, Any]) -> str:
    try:
        value = float(text)
    except ValueError:
        return text
    if "digits" not in request:
        return text
    return f"{value:{'+' if text.startswith('+') else ''},.{request['digits']}f}"


def _texts(found: Any) -> list[str]:
    """One value or several as texts, numbers as the data files write them."""
    return [
        f"{one:g}" if isinstance(one, float) else str(one) for one in (found if isinstance(found, list) else [found])
    ]


if __name__ == "__main__":
    main()
