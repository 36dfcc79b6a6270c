"""The arguments of ``hfp flower``."""

from __future__ import annotations

import argparse
from pathlib import Path

from hfp.errors import InputError


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add = parser.add_argument
    add("action", choices=["up"], help="start a local deployment, and stop it when this command ends")
    add("--nodes", type=int, default=3, metavar="N", help="SuperNodes, one a client (default: 3)")
    add("--secure", action="store_true", help="TLS, and only nodes whose keys are registered")
    add("--simulation", action="store_true", help="a SuperLink that simulates the nodes with Ray instead")
    add("--run", type=Path, metavar="APP", help="run this app's folder once, and stop")
    add("--run-config", action="append", default=[], metavar="'NAME=VALUE …'", help="settings of that run")
    add("--folder", type=Path, help="for logs, keys and Flower's files (default: a temporary one)")


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
