"""How commands print a JSON document."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any, TextIO

from hfp.finite import finite

_output: ContextVar[TextIO | None] = ContextVar("_output", default=None)


@contextlib.contextmanager
def document_alone() -> Iterator[None]:
    """Leave standard output to `print_json`: what else is printed, as by a model's own code, goes to standard error."""
    before = _output.set(sys.stdout)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        _output.reset(before)


def print_json(document: Any) -> None:
    """Print a document of plain values in a line of its own, with null for what JSON has no number for."""
    output = _output.get() or sys.stdout
    json.dump(finite(document), output, allow_nan=False)
    output.write("\n")
