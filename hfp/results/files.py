"""The names of the files in a run's folder, and whether it is one. Torch is not loaded for it."""

from __future__ import annotations

from pathlib import Path

from hfp.errors import InputError

CONFIGURATION, METRICS, MODEL, PICTURE = "config.json", "metrics.jsonl", "global.safetensors", "accuracy.png"
DIAGNOSTICS, PAGE, LOCK = "diagnostics.png", "page.html", ".lock"
DESCRIPTION, PLANS, CLIENTS = "model.json", "plans.json", "clients"  # how to make the model again, and submodels
CHECKPOINT, PREVIOUS = "checkpoint.safetensors", "checkpoint-previous.safetensors"
_OF_A_RUN = (CONFIGURATION, METRICS, MODEL, DESCRIPTION, PLANS, CHECKPOINT, PREVIOUS)


def run_folder(path: Path) -> Path:
    """Return the folder of a run when the path is one of the files in it that stand for the run, else the path."""
    if path.name in _OF_A_RUN and path.is_file() and (path.parent / DESCRIPTION).exists():
        return path.parent
    return path


def check_run(path: Path) -> Path:
    """Return the folder of a run, for which the files in it also stand.

    Raises:
        InputError: there is no such folder, or it is no run's.
    """
    folder = run_folder(path)
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}; give the folder that hfp run wrote")
    if not (folder / DESCRIPTION).exists():
        raise InputError(f"there is no {DESCRIPTION} in {folder}; give the folder of a run of this hfp")
    return folder


def has_checkpoint(folder: Path) -> bool:
    """Whether there is a checkpoint, of whatever kind."""
    return (folder / CHECKPOINT).exists() or (folder / PREVIOUS).exists()
