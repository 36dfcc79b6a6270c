"""The arguments of ``hfp predict``."""

from __future__ import annotations

import argparse
from pathlib import Path


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``hfp predict``."""
    parser.add_argument("run", type=Path, metavar="RUN", help="a run's folder, or a file that hfp extract wrote")
    parser.add_argument("images", type=Path, nargs="+", metavar="IMAGE", help="image files, or folders of them")
    parser.add_argument("--client", type=int, metavar="K", help="ask this client's own model instead of the global one")
    parser.add_argument("--model", metavar="MODULE:FACTORY", help="the full model, where the run has its own")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
