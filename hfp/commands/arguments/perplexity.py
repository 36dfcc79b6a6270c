"""The arguments of ``hfp perplexity``."""

from __future__ import annotations

import argparse
from pathlib import Path


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``hfp perplexity``."""
    parser.add_argument("folder", metavar="FOLDER", help="a folder of transformers, pruned or not, with its tokenizer")
    parser.add_argument("text", type=Path, metavar="TEXT", help="a text file in UTF-8")
    parser.add_argument("--window", type=int, metavar="N", help="tokens per window of the text (default: 512)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, mps ... (default: cpu)")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
