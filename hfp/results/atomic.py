"""Files are written whole or not at all, and what an interruption leaves of them is cleared away."""

from __future__ import annotations

import contextlib
import os
import re
import uuid
from collections.abc import Callable
from pathlib import Path

_UNFINISHED = re.compile(r"\..+\.[0-9a-f]{32}\.tmp")


def write_atomically(path: Path, content: bytes, before_rename: Callable[[Path], None] = lambda _: None) -> None:
    """Write the whole file or nothing: a temporary file beside it, on the disk before it gets its name.

    `before_rename` is called with the temporary file once the content is on the disk.
    """
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with open(unfinished, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        before_rename(unfinished)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    _sync(path.parent)


def is_unfinished(path: Path) -> bool:
    """Whether a file is what an interrupted `write_atomically` left."""
    return _UNFINISHED.fullmatch(path.name) is not None


def clear_unfinished(folder: Path) -> None:
    """Remove what interrupted writes left in a folder, and in the folders in it, that nobody else writes to."""
    for path in folder.rglob(".*.tmp"):
        if is_unfinished(path):
            path.unlink(missing_ok=True)


def _sync(folder: Path) -> None:
    """Have a rename on the disk; not every system can, and none needs it for the file to be whole."""
    with contextlib.suppress(OSError):
        place = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(place)
        finally:
            os.close(place)
