"""The arguments of ``hfp extract``."""

from __future__ import annotations

import argparse
from pathlib import Path

from hfp.commands.arguments.targets import check_target
from hfp.errors import InputError
from hfp.models.names import check_full_model
from hfp.results.files import check_run


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``hfp extract``."""
    parser.add_argument("run", type=Path, metavar="RUN", help="The model is taken from this folder of a run.")
    parser.add_argument(
        "--client",
        type=int,
        metavar="K",
        help="It is this client's own model, counted from 0. [default: the global one]",
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="The model is written to this new file, as safetensors."
    )
    parser.add_argument(
        "--onnx", type=Path, metavar="FILE", help="It is also exported to this new file, and the export is checked."
    )
    parser.add_argument(
        "--model",
        metavar="MODULE:FACTORY",
        help="The full model is made by this function, where the run was given its model in Python.",
    )
    parser.add_argument("--json", action="store_true", help="What was written is printed as one JSON document.")


def check(arguments: argparse.Namespace) -> None:
    """Refuse, before torch is loaded, a run that is not there and files that can't be new.

    Raises:
        InputError: there is no run, or a file can't be written, is there already or is given twice.
    """
    check_run(arguments.run)
    check_full_model(arguments.model)
    for path in (arguments.out, arguments.onnx):
        if path is None:
            continue
        check_target(path)
        if path.exists():
            raise InputError(f"{path} is there already; give the name of a new file")
    if arguments.onnx is not None and arguments.onnx.resolve() == arguments.out.resolve():
        raise InputError(f"--out and --onnx are different files, not {arguments.out} twice")
