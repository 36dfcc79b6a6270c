"""Structured pruning that can be undone, shared and federated.

Names are loaded when first used: ``import hfp`` and ``hfp --help`` don't wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hfp import importance, reconstruct
    from hfp.engine import simulate
    from hfp.errors import InputError
    from hfp.experiment import Experiment
    from hfp.models import create_model
    from hfp.records import Run

__all__ = ["Experiment", "InputError", "Run", "create_model", "importance", "reconstruct", "simulate"]

_HOMES = {
    "Experiment": "hfp.experiment",
    "InputError": "hfp.errors",
    "Run": "hfp.records",
    "create_model": "hfp.models",
    "simulate": "hfp.engine",
}


def __getattr__(name: str) -> Any:
    if name in ("importance", "reconstruct"):
        return import_module(f"hfp.{name}")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'hfp' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
