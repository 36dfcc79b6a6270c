"""Examples are imported anew in every test, since importing them makes their methods and data sets known."""

from __future__ import annotations

import sys

THEIRS = ("custom_method", "paper", "paper_tables")


def forget_examples() -> None:
    """Drop the modules of examples that were imported."""
    for name in [name for name in sys.modules if name.split(".")[0] in THEIRS]:
        del sys.modules[name]
