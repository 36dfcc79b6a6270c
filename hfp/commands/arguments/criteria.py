"""The arguments of ``hfp criteria``."""

from __future__ import annotations

import argparse


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("name", nargs="?", metavar="NAME", help="The options of this criterion are listed.")
    parser.add_argument("--json", action="store_true", help="A list of objects is printed, or one criterion's object.")
