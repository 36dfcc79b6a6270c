"""Tells what a run's folder holds, as plain values. No model is made for it."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from hfp.errors import InputError
from hfp.federation.ending import why_ended
from hfp.results.description import read_description
from hfp.results.files import CLIENTS, METRICS, MODEL
from hfp.results.load import read_history, read_settings

_SETTINGS = ("method", "dataset", "clients", "seed")


def run_overview(folder: Path) -> dict[str, Any]:
    """Tell what a run was, how far it came, how good its model is and how to load it.

    Raises:
        InputError: the folder is not a run's, or a file in it is damaged.
    """
    description, settings = read_description(folder), read_settings(folder)
    history, given = read_history(folder / METRICS), description.input
    tested = [line["accuracy"] for line in history if line.get("accuracy") is not None]
    model, option = ("", "") if description.named else (", model=...", " --model MODULE:FACTORY")
    quoted = shlex.quote(str(folder))
    return {
        "kind": "run",
        "folder": str(folder),
        "model": description.model,
        **{name: settings.get(name) for name in _SETTINGS},
        "rounds": len(history),
        "rounds_planned": settings.get("rounds"),
        "accuracy": tested[-1] if tested else None,
        "ended": _ended(history, settings),
        "entries": _entries(folder / MODEL),
        "classes": list(description.classes),
        "input": {"shape": list(given.shape), "dtype": given.dtype, "largest": given.largest},
        "trained_clients": trained_clients(folder),
        "hfp": description.hfp,
        "load": f"hfp.load_run({json.dumps(str(folder))}{model})",
        "predict": f"hfp predict {quoted} IMAGE ...{option}" if given.takes_pictures else None,
        "extract": f"hfp extract {quoted} --client 0 --out client-0.safetensors{option}",
    }


def _ended(history: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> str:
    rounds, patience = settings.get("rounds"), settings.get("patience", 0)
    if type(rounds) is not int or type(patience) is not int:
        return ""
    return why_ended([line.get("accuracy") for line in history], rounds, patience)


def trained_clients(folder: Path) -> list[int]:
    """List the clients whose models were saved as trained."""
    names = [path.stem.removeprefix("client-") for path in (folder / CLIENTS).glob("client-*.safetensors")]
    return sorted(int(name) for name in names if name.isdecimal())


def _entries(path: Path) -> int:
    """Count the numbers in the full model's state, with its buffers."""
    try:
        with safe_open(path, framework="pt") as file:
            return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    except FileNotFoundError:
        raise InputError(f"there is no {path.name} in {path.parent}; the run has not ended its first round") from None
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is damaged: {error}") from error
