"""Say what is being done: in a terminal, in a notebook, or as a line now and then where output is piped."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module

from rich.console import Console

Tell = Callable[[str], None]
BEAT = 10.0
"""Seconds between two lines that say what is being done, where output is piped."""


@contextmanager
def told(progress: bool | Tell | None, console: Console | None = None) -> Iterator[Tell]:
    """A function that says what is being done, until the block ends.

    Args:
        progress: a function is used as it is; True shows a line on standard error, or below a notebook's cell; None and
            False show nothing.
        console: where to write, instead of standard error.
    """
    if callable(progress):
        yield progress
    elif not progress:
        yield lambda _: None
    elif _in_notebook():
        with _cell() as tell:
            yield tell
    else:
        console = console or Console(stderr=True, highlight=False)
        with _status(console) if console.is_terminal else _lines(console) as tell:
            yield tell


def _in_notebook() -> bool:
    shell = sys.modules.get("IPython")
    found = shell.get_ipython() if shell is not None else None
    return found is not None and hasattr(found, "kernel")


@contextmanager
def _status(console: Console) -> Iterator[Tell]:
    with console.status("pruning") as status:
        yield status.update


@contextmanager
def _cell() -> Iterator[Tell]:
    """One line below the cell, which is written over."""
    handle = import_module("IPython.display").display({"text/plain": "pruning"}, raw=True, display_id=True)
    try:
        yield lambda text: handle.update({"text/plain": text}, raw=True)
    finally:
        handle.update({"text/plain": ""}, raw=True)


@contextmanager
def _lines(console: Console) -> Iterator[Tell]:
    """A line every `BEAT` seconds, which says what is being done."""
    doing, start, done = ["pruning"], time.monotonic(), threading.Event()

    def tell(text: str) -> None:
        doing[0] = text

    def beat() -> None:
        while not done.wait(BEAT):
            console.print(f"{doing[0]} ({time.monotonic() - start:.0f} s so far)", soft_wrap=True, markup=False)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield tell
    finally:
        done.set()
        thread.join()
