"""Files are written whole or not at all, and what an interruption leaves of them is cleared away."""

from __future__ import annotations

import contextlib
import os
import re
import uuid
from collections.abc import Callable, Iterator
from itertools import chain, count
from pathlib import Path

_UNFINISHED = re.compile(r"\..+\.[0-9a-f]{32}\.tmp")


@contextlib.contextmanager
def whole_file(path: Path, before_rename: Callable[[Path], None] = lambda _: None) -> Iterator[Path]:
    """Give a temporary file beside `path` to write to; it becomes `path` if the block ends well, else it is removed.

    Args:
        path: the file to write; one that is there is replaced in one step.
        before_rename: is called with the temporary file once its content is on the disk.

    Raises:
        OSError: the file can't be written, and the error names it. One that was there before is untouched then.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> with whole_file(folder / "notes.txt") as unfinished:
    ...     written = unfinished.write_text("all of it")
    >>> [file.name for file in folder.iterdir()]
    ['notes.txt']
    """
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        yield unfinished
        flush(unfinished)
        before_rename(unfinished)
        os.replace(unfinished, path)
    except OSError as error:  # it names the temporary file, or none where a disk is full
        if error.errno is None or str(error.filename or unfinished) != str(unfinished):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        unfinished.unlink(missing_ok=True)
    _sync(path.parent)


def write_atomically(path: Path, content: bytes, before_rename: Callable[[Path], None] = lambda _: None) -> None:
    """Write bytes as `whole_file` does.

    Raises:
        OSError: the file can't be written. One that was there before is untouched then.
    """
    with whole_file(path, before_rename) as unfinished:
        unfinished.write_bytes(content)


def flush(path: Path) -> None:
    """Wait until the content of a file is on the disk.

    Raises:
        OSError: it can't be written there.
    """
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def free_name(path: Path, *endings: str) -> Path:
    """Return the path, or where something has its name one with a number, such as notes-2.txt.

    Args:
        path: the file or folder to write.
        endings: other endings, such as ".onnx", under which nothing may be beside it either.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> write_atomically(folder / "notes.txt", b"all of it")
    >>> free_name(folder / "notes.txt").name
    'notes-2.txt'
    """
    numbered = (  # what follows a dot in a folder's name, as in Llama-3.2, is no ending
        path.with_name(f"{path.name}-{number}") if path.is_dir() else path.with_stem(f"{path.stem}-{number}")
        for number in count(2)
    )
    return next(
        name
        for name in chain([path], numbered)
        if not any(place.exists() for place in (name, *map(name.with_suffix, endings)))
    )


def is_unfinished(path: Path) -> bool:
    """Whether a file is what an interrupted `whole_file` left."""
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
