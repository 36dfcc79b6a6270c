"""The names of the files in a run's folder, and whether it is one. Torch is not loaded for it."""

from __future__ import annotations

from pathlib import Path

from hfp.errors import InputError

CONFIGURATION, METRICS, MODEL, PICTURE = "config.json", "metrics.jsonl", "global.safetensors", "accuracy.png"
DIAGNOSTICS, PAGE, LOCK = "diagnostics.png", "page.html", ".lock"
DESCRIPTION, PLANS, CLIENTS = "model.json", "plans.json", "clients"  # how to make the model again, and submodels
CHECKPOINT, PREVIOUS = "checkpoint.safetensors", "checkpoint-previous.safetensors"


def check_run(path: Path) -> Path:
    """Return the folder of a run, whose global model's file also stands for it.

    Raises:
        InputError: there is no such folder, or it is no run's.
    """
    folder = path.parent if path.name == MODEL else path
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}; give the folder that hfp run wrote")
    if not (folder / DESCRIPTION).exists():
        raise InputError(f"there is no {DESCRIPTION} in {folder}; give the folder of a run of this hfp")
    return folder


def has_checkpoint(folder: Path) -> bool:
    """Whether there is a checkpoint, of whatever kind."""
    return (folder / CHECKPOINT).exists() or (folder / PREVIOUS).exists()
