"""Structured pruning that can be undone, shared and federated.

Names are loaded when first used: ``import hfp`` and ``hfp --help`` don't wait for torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hfp.lazy import lazily

if TYPE_CHECKING:
    from hfp import importance, reconstruct
    from hfp.errors import InputError
    from hfp.federation.experiment import Experiment
    from hfp.federation.observer import Observer
    from hfp.federation.records import Run
    from hfp.models import create_model
    from hfp.pruning.budget import Budget
    from hfp.pruning.prune import PruneResult, prune
    from hfp.pruning.storing import save_pruned
    from hfp.reconstruct import load_pruned
    from hfp.results.simulate import simulate

__all__ = [
    "Budget",
    "Experiment",
    "InputError",
    "Observer",
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

__getattr__, __dir__ = lazily(
    __name__,
    {
        "hfp.errors": "InputError",
        "hfp.federation.experiment": "Experiment",
        "hfp.federation.observer": "Observer",
        "hfp.federation.records": "Run",
        "hfp.models": "create_model",
        "hfp.pruning.budget": "Budget",
        "hfp.pruning.prune": "PruneResult prune",
        "hfp.pruning.storing": "save_pruned",
        "hfp.reconstruct": "load_pruned",
        "hfp.results.simulate": "simulate",
    },
    modules=("importance", "reconstruct"),
)
