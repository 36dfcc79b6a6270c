"""The arguments of ``hfp flower``."""

from __future__ import annotations

import argparse
from pathlib import Path

from hfp.errors import InputError


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add = parser.add_argument
    add("action", choices=["up"], help="A deployment is started on this machine, and stopped when the command ends.")
    add(
        "--nodes",
        type=int,
        default=3,
        metavar="N",
        help="This many SuperNodes are started, one per client. [default: 3; at least 1]",
    )
    add(
        "--secure",
        action="store_true",
        help="Connections use TLS, and only nodes whose keys are registered are let in.",
    )
    add("--simulation", action="store_true", help="The SuperLink simulates the nodes with Ray; none is started.")
    add("--run", type=Path, metavar="APP", help="The app in this folder is run once, and then the command ends.")
    add(
        "--run-config",
        action="append",
        default=[],
        metavar="'NAME=VALUE …'",
        help="The run of the app has these settings; it may be given several times.",
    )
    add(
        "--folder",
        type=Path,
        metavar="FOLDER",
        help="Logs, keys and Flower's files are kept in this folder. [default: a temporary one]",
    )


def check(arguments: argparse.Namespace) -> None:
    """Refuse what can be refused before Flower is loaded.

    Raises:
        InputError: there is no node or no app, or two options exclude each other.
    """
    if arguments.nodes < 1:
        raise InputError(f"nodes must be at least 1; found {arguments.nodes}")
    if arguments.run is not None and not (arguments.run / "pyproject.toml").is_file():
        raise InputError(f"there is no app in {arguments.run}: it has no pyproject.toml")
    if arguments.secure and arguments.simulation:
        raise InputError("simulated nodes have no keys; give --secure or --simulation")
