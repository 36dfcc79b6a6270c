"""The arguments of ``hfp flower``."""

from __future__ import annotations

import argparse
from pathlib import Path


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
