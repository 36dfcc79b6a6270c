"""The argument that says how often a run's state is saved."""

from __future__ import annotations

import argparse

from hfp.errors import InputError


def add_checkpoint(group: argparse._ArgumentGroup) -> None:
    """Declare ``--checkpoint``."""
    group.add_argument(
        "--checkpoint",
        type=int,
        default=1,
        metavar="N",
        help="A run's state is saved every N rounds, so that it can be resumed; 0 is never. [default: 1; at least 0]",
    )


def check_checkpoint(arguments: argparse.Namespace) -> None:
    """Refuse a number below 0.

    Raises:
        InputError: it is below 0.
    """
    if arguments.checkpoint < 0:
        raise InputError(f"checkpoint must be at least 0; found {arguments.checkpoint}")
