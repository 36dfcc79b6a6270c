"""The page of the data files: a table and the pictures of every study that has a figure."""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from data_files import Line, read
from render_pages import rendered

from hfp.atomic import write_atomically
from hfp.comparison.definition import Comparison
from hfp.comparison.page import file_name
from hfp.comparison.table import Row, Runs
from hfp.errors import file_errors
from hfp.results.charts import standalone
from paper_tables.lines import NOT_RUN
from paper_tables.studies import Study


def draw(page: Path, name: str, study: Study, runs: Runs, made: Sequence[Row]) -> None:
    """Draw a study's pictures beside the page."""
    with file_errors(f"the pictures of {page} can't be written"):
        for title, chart in study.pictures(study.comparison, runs, made).items() if made else ():
            write_atomically(page.with_name(f"{page.stem}-{name}-{file_name(title)}.svg"), standalone(chart).encode())


def write_page(page: Path, known: Mapping[str, Study], head: Callable[[Sequence[Line]], list[str]]) -> str:
    """Write the page of all that is in the data file; returns what is to be said of it.

    Of a page with text that is not this command's only the tables change. `head` makes the page's first part from the
    lines of the data file.
    """
    with file_errors(f"page {page} can't be written"):
        before = page.read_text(encoding="utf-8") if page.exists() else None
        if before is not None and before != _signed(before.rpartition(_SIGN)[0]):
            write_atomically(page, rendered(page).encode())
            return ": its tables alone, since its text is not this command's"
        lines = read(page.with_suffix(".csv"))
        text = "\n".join([*head(lines), *_sections(known, page, lines)])
        write_atomically(page, _signed(rendered(page, text)).encode())
    return ""


_SIGN = "\n<!-- made by examples/paper.py, "


def _signed(text: str) -> str:
    return f"{text}{_SIGN}{hashlib.sha256(text.encode()).hexdigest()[:16]} -->\n"


def _sections(known: Mapping[str, Study], page: Path, lines: Sequence[Line]) -> Iterator[str]:
    """The parts of the page: a study's table, and the pictures of it that there are."""
    for name, study in known.items():
        if not any(line["study"] == name and line["accuracy"] != NOT_RUN for line in lines):
            continue
        data, start = page.with_suffix(".csv"), f"{page.stem}-{name}-"
        yield from (f"## {study.title}", "", study.about, "", *_table(name, data, study.comparison), "")
        for picture in sorted(page.parent.glob(f"{glob.escape(start)}*.svg")):
            title = picture.stem.removeprefix(start).replace("-", " ")
            yield from (f"![{title}]({picture.name})", "")


def _table(study: str, data: Path, comparison: Comparison) -> list[str]:
    """The request for a table with a row for every variant and a column for every alpha, or for every size."""
    columns, heading = ("size", "{}") if len(comparison.sizes) > 1 else ("alpha", "α = {}")
    by_alpha = columns == "size" and len(comparison.alphas) > 1
    return [
        "<!-- table",
        f'file = "{data.name}"',
        f'where = {{study = "{study}"}}',
        'rows = ["alpha", "variant"]' if by_alpha else 'rows = "variant"',
        'labels = ["α", "accuracy, %"]' if by_alpha else 'labels = ["accuracy, %"]',
        f'columns = "{columns}"',
        f'heading = "{heading}"',
        'cells = "accuracy"',
        "-->",
    ]
