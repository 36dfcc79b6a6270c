"""The arguments of ``hfp perplexity``."""

from __future__ import annotations

import argparse
from pathlib import Path


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``hfp perplexity``."""
    parser.add_argument(
        "folder",
        metavar="FOLDER",
        help="The model is in this folder of transformers, pruned or not, with its tokenizer.",
    )
    parser.add_argument("text", type=Path, metavar="TEXT", help="The text is in this file, in UTF-8.")
    parser.add_argument(
        "--window", type=int, metavar="N", help="A window of the text has this many tokens. [default: 512]"
    )
    parser.add_argument(
        "--device",
        default="cpu",
        help="The model runs on this device of PyTorch: cpu, cuda, cuda:1 and so on. [default: cpu]",
    )
    parser.add_argument("--json", action="store_true", help="The result is printed as one JSON document.")
