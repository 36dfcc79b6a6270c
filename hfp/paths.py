"""Folders as users name them."""

from __future__ import annotations

import os
from pathlib import Path


def of_home(path: str | os.PathLike[str]) -> Path:
    """Return a path in which a leading ``~`` stands for a home, unless it is of nobody that there is.

    >>> of_home("~nobody-is-called-this/data").name
    'data'
    """
    return Path(os.path.expanduser(path))
