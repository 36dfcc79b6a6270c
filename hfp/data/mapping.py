"""Map files into memory."""

from __future__ import annotations

import mmap
import sys

_NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)  # Python names it from 3.13 on


def mapped(file: int) -> mmap.mmap:
    """Map a file, given by its descriptor, into memory without reserving memory for all of it.

    It is read when it is looked at, and writing to it does not change the file.
    """
    if hasattr(mmap, "MAP_PRIVATE"):
        return mmap.mmap(file, 0, flags=mmap.MAP_PRIVATE | _NO_RESERVE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    return mmap.mmap(file, 0, access=mmap.ACCESS_COPY)
