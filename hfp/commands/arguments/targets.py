"""What is checked of a file to write, and of a size, before a command starts."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hfp.errors import InputError

LARGEST_SIDE = 99_999
"""Pixels: files of pruned models that tell of larger images are not believed either."""


def check_target(path: Path, ending: str = "") -> None:
    """Refuse a file that can't be written.

    Raises:
        InputError: it is a folder, its own folder is not there or can't be written to, or its name ends otherwise.
    """
    folder = path.absolute().parent
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder} to write {path.name} to")
    if path.is_dir():
        raise InputError(f"{path} is a folder; give the name of a file")
    if not path.name.lower().endswith(ending):
        raise InputError(f"{path} must end with {ending}, as the file that is written there is of that kind")
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(f"{path.name} can't be written into {folder}: {error.strerror or error}") from error


def check_image_size(size: int | None) -> None:
    """Refuse a side that no image has.

    Raises:
        InputError: it is below 1, or above `LARGEST_SIDE`.
    """
    if size is not None and not 1 <= size <= LARGEST_SIDE:
        bound = "at least 1" if size < 1 else f"at most {LARGEST_SIDE:,}"
        raise InputError(f"--image-size is {bound}, not {size}")
