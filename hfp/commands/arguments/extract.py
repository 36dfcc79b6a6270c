"""The arguments of ``hfp extract``."""

from __future__ import annotations

import argparse
from pathlib import Path


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``hfp extract``."""
    parser.add_argument("run", type=Path, metavar="RUN", help="a run's folder")
    parser.add_argument("--client", type=int, metavar="K", help="whose model, from 0 on (default: the global model)")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="a new file, as safetensors")
    parser.add_argument("--onnx", type=Path, metavar="FILE", help="also write a new ONNX file, and check it")
    parser.add_argument("--model", metavar="MODULE:FACTORY", help="the full model, where the run has its own")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
