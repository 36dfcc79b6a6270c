"""What ``hfp prune hf:FOLDER`` refuses before torch is loaded."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from hfp import importance
from hfp.commands.arguments.prune_checks import check_once, checked_budget
from hfp.errors import InputError
from hfp.language.choices import PREFIX, RANKINGS
from hfp.paths import of_home
from hfp.pruning.budget import KINDS, Budget

_OF_IMAGES: dict[str, Any] = {
    "latency": None, "export": None, "picture": None, "num_classes": None, "in_channels": None, "image_size": None,
    "pretrained": False, "weights": None, "device": "cpu", "ignore": [], "part": None, "keep_heads": False, "steps": 1,
    "data": None, "data_root": None, "repair": [], "batch_size": None, "batches": None, "finetune": 0,
    "learning_rate": None, "augment": False,
}  # fmt: skip
_OF_FOLDERS: dict[str, Any] = {"widths": [], "drop_blocks": "", "text": None, "window": None}


def folder_of(arguments: argparse.Namespace) -> Path:
    """Return the folder that the model's name gives."""
    return of_home(arguments.model.removeprefix(PREFIX))


def folder_budget(arguments: argparse.Namespace) -> Budget | None:
    """Return the budget of the command line; None where only blocks go.

    Raises:
        InputError: none is given and no blocks go, or a number is out of its range.
    """
    if arguments.drop_blocks and all(getattr(arguments, name) is None for name in KINDS):
        if arguments.tolerance is not None:
            raise InputError("--tolerance is for a limit, and none is given")
        return None
    return checked_budget(arguments)


def dropped(arguments: argparse.Namespace) -> int | tuple[int, ...]:
    """Return how many blocks go, or which.

    Raises:
        InputError: it is neither a number nor numbers with commas.
    """
    text = arguments.drop_blocks
    try:
        if "," in text:
            return tuple(int(part) for part in text.split(",") if part.strip())
        return int(text or 0)
    except ValueError:
        raise InputError(f"--drop-blocks is a number of blocks, or indices with commas, not {text!r}") from None


def check_folder_arguments(arguments: argparse.Namespace) -> None:
    """Check all that can be checked without the model.

    Raises:
        InputError: a number out of its range, an option that would be ignored, a value that is given twice, or a folder
            that can't be written.
        CriterionError: the criterion is unknown.
    """
    for name, default in _OF_IMAGES.items():
        if getattr(arguments, name) != default:
            raise InputError(f"--{name.replace('_', '-')} does not apply to {PREFIX}FOLDER")
    if arguments.ranking is not None and arguments.ranking not in RANKINGS:
        raise InputError(
            f"--ranking {arguments.ranking} needs the model in memory; {PREFIX}FOLDER takes {', '.join(RANKINGS)}"
        )
    importance.describe(arguments.importance)
    check_once(arguments, "widths")
    folder_budget(arguments)
    drop = dropped(arguments)
    if isinstance(drop, int) and drop and arguments.text is None:
        raise InputError("--drop-blocks N measures on a text which blocks go: --text FILE, or give their indices")
    if arguments.window is not None and arguments.text is None:
        raise InputError("--window is for --text FILE, which is not given")
    if not folder_of(arguments).is_dir():
        raise InputError(f"there is no folder {folder_of(arguments)}; give one that save_pretrained wrote")
    arguments.ranking = arguments.ranking or "uniform"


def check_no_folder_options(arguments: argparse.Namespace) -> None:
    """Refuse options of folders with another model.

    Raises:
        InputError: one is given.
    """
    for name, default in _OF_FOLDERS.items():
        if getattr(arguments, name) != default:
            raise InputError(f"--{name.replace('_', '-')} is for language models: {PREFIX}FOLDER")
    if arguments.ranking == "uniform":
        raise InputError(f"--ranking uniform is for language models: {PREFIX}FOLDER")
