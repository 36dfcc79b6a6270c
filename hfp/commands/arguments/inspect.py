"""The arguments of ``hfp inspect``."""

from __future__ import annotations

import argparse
from pathlib import Path


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``hfp inspect``."""
    parser.add_argument(
        "file",
        type=Path,
        metavar="PATH",
        help="a run's folder, or a file that hfp prune, hfp extract or hfp.save_pruned wrote",
    )
    parser.add_argument(
        "--model", metavar="MODEL", help="the full model, where the file does not name it: a name or module:factory"
    )
    parser.add_argument("--image-size", type=int, metavar="PIXELS", help="to count with (default: as pruned)")
    parser.add_argument("--picture", type=Path, metavar="PNG", help="draw what is left of every layer")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
