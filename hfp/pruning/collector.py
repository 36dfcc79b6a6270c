"""Keep Python's garbage collector to what pruning makes."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

NEW_OBJECTS = 100_000
"""The number of new objects after which the collector looks at them."""

_BY_PYTHON = 10_000
"""More frozen objects than Python's own, of which some versions freeze a few hundred at their start."""


@contextmanager
def only_new_objects() -> Iterator[None]:
    """Inside, the garbage collector looks at objects made since, not at all that the program holds.

    A program that has loaded PyTorch holds a million objects. Pruning makes enough new ones for the collector to go
    through all of them several times, which was a third of the time of planning a small network. Garbage made inside is
    collected too, but less often. Nothing is done where the program has frozen objects itself.
    """
    if gc.get_freeze_count() > _BY_PYTHON:
        yield
        return
    often, *others = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(max(often, NEW_OBJECTS) if often else 0, *others)
    try:
        yield
    finally:
        gc.set_threshold(often, *others)
        gc.unfreeze()
