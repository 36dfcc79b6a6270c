"""Structured pruning that can be undone, shared and federated.

Names are loaded when first used: ``import hfp`` and ``hfp --help`` don't wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hfp import importance, reconstruct
    from hfp.errors import InputError
    from hfp.federation.experiment import Experiment
    from hfp.federation.records import Run
    from hfp.federation.rounds import simulate
    from hfp.models import create_model
    from hfp.pruning.budget import Budget
    from hfp.pruning.prune import PruneResult, prune
    from hfp.pruning.storing import save_pruned
    from hfp.reconstruct import load_pruned

__all__ = [
    "Budget",
    "Experiment",
    "InputError",
    "PruneResult",
    "Run",
    "create_model",
    "importance",
    "load_pruned",
    "prune",
    "reconstruct",
    "save_pruned",
    "simulate",
]

_HOMES = {
    "Budget": "hfp.pruning.budget",
    "Experiment": "hfp.federation.experiment",
    "InputError": "hfp.errors",
    "PruneResult": "hfp.pruning.prune",
    "Run": "hfp.federation.records",
    "create_model": "hfp.models",
    "load_pruned": "hfp.reconstruct",
    "prune": "hfp.pruning.prune",
    "save_pruned": "hfp.pruning.storing",
    "simulate": "hfp.federation.rounds",
}


def __getattr__(name: str) -> Any:
    if name in ("importance", "reconstruct"):
        return import_module(f"hfp.{name}")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'hfp' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
