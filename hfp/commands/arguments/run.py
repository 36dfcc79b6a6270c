"""The arguments of ``hfp run``."""

from __future__ import annotations

import argparse
from pathlib import Path

from hfp.commands.arguments.checkpoint import add_checkpoint, check_checkpoint
from hfp.commands.arguments.settings import add_settings, check_given
from hfp.errors import InputError
from hfp.federation.experiment import MOST_THREADS
from hfp.federation.jobs.check import check_jobs, check_threads
from hfp.results.files import CONFIGURATION, has_checkpoint


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments; the defaults of settings are those of `Experiment`."""
    groups = add_settings(parser)
    groups["devices"].add_argument(
        "--threads",
        type=int,
        metavar="N",
        help="A client is trained with this many threads of the processor. [default: one for small models, else "
        f"PyTorch's number; from 1 to {MOST_THREADS}]",
    )
    groups["devices"].add_argument(
        "--jobs",
        type=int,
        default=1,
        metavar="N",
        help="On the processor this many clients train at once, each in a process of its own; results are the same. "
        "No more processes are started than there are clients. [default: 1; at least 1]",
    )
    output = groups["output"]
    output.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="Results are written to this folder, which must be new or empty. [default: a fresh one under runs/]",
    )
    output.add_argument(
        "--save-clients",
        action="store_true",
        help="Every client's own model is kept as its training left it, in the folder clients/ of the results.",
    )
    output.add_argument(
        "--resume",
        type=Path,
        metavar="FOLDER",
        help="The interrupted run in this folder goes on where it was saved, with the settings it was started with.",
    )
    add_checkpoint(output)
    output.add_argument(
        "--track",
        choices=("tensorboard", "trackio"),
        action="append",
        default=[],
        help="Every round's figures are also shown by this tracker: tensorboard, which has the folder tensorboard/ of "
        "the results, or trackio, which has a folder of its own. Each needs the extra of its name. The flag may be "
        "given twice.",
    )
    output.add_argument(
        "--json",
        action="store_true",
        help="The result is printed as one JSON document, and progress goes to standard error.",
    )


def check(arguments: argparse.Namespace) -> None:
    """Refuse what can be refused before torch is loaded.

    Raises:
        InputError: a value is of another kind, outside its range, or a name that isn't known.
    """
    check_given(arguments)
    if arguments.threads is not None:
        check_threads(arguments.threads)
    check_jobs(arguments.jobs, arguments.device or "cpu")
    check_checkpoint(arguments)
    if arguments.resume is not None and arguments.out is not None:
        raise InputError("a resumed run stays in its folder: give --resume or --out, not both")
    if arguments.resume is not None:
        check_resumable(arguments.resume)


def check_resumable(path: Path) -> None:
    """Refuse a folder in which no run was interrupted.

    Raises:
        InputError: it has neither a checkpoint nor a configuration.
    """
    if not has_checkpoint(path) and not (path / CONFIGURATION).exists():
        raise InputError(f"there is no run in {path}; give the folder that an interrupted run was written to")
