"""Criteria: what does removing a channel do to the loss? As torch-pruning Importance classes.

A criterion is loaded, and torch with it, when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hfp.lazy import lazily

if TYPE_CHECKING:
    from hfp.importance.bases.diagonal import DiagonalImportance
    from hfp.importance.bases.scaled import ScaledImportance
    from hfp.importance.criteria.empirical_fisher import EmpiricalFisherImportance
    from hfp.importance.criteria.group_fisher import GroupFisherImportance
    from hfp.importance.criteria.group_kl import GroupKLImportance
    from hfp.importance.criteria.group_loss import GroupLossImportance
    from hfp.importance.criteria.hutchinson import HutchinsonImportance
    from hfp.importance.criteria.kronecker import KroneckerImportance
    from hfp.importance.criteria.sampled_fisher import SampledFisherImportance
    from hfp.importance.criteria.shipped import HessianImportance, RandomImportance, ShippedImportance, TaylorImportance
    from hfp.importance.criteria.variation import Variation, VariationImportance
    from hfp.importance.errors import CriterionError
    from hfp.importance.layers import register_layer
    from hfp.importance.registry import Criterion, create, describe, factory_of, names, register
    from hfp.layers.table import Slot

__all__ = [
    "Criterion",
    "CriterionError",
    "DiagonalImportance",
    "EmpiricalFisherImportance",
    "GroupFisherImportance",
    "GroupKLImportance",
    "GroupLossImportance",
    "HessianImportance",
    "HutchinsonImportance",
    "KroneckerImportance",
    "RandomImportance",
    "SampledFisherImportance",
    "ScaledImportance",
    "ShippedImportance",
    "Slot",
    "TaylorImportance",
    "Variation",
    "VariationImportance",
    "create",
    "describe",
    "factory_of",
    "names",
    "register",
    "register_layer",
]

__getattr__, __dir__ = lazily(
    __name__,
    {
        "hfp.importance.bases.diagonal": "DiagonalImportance",
        "hfp.importance.bases.scaled": "ScaledImportance",
        "hfp.importance.criteria.empirical_fisher": "EmpiricalFisherImportance",
        "hfp.importance.criteria.group_fisher": "GroupFisherImportance",
        "hfp.importance.criteria.group_kl": "GroupKLImportance",
        "hfp.importance.criteria.group_loss": "GroupLossImportance",
        "hfp.importance.criteria.hutchinson": "HutchinsonImportance",
        "hfp.importance.criteria.kronecker": "KroneckerImportance",
        "hfp.importance.criteria.sampled_fisher": "SampledFisherImportance",
        "hfp.importance.criteria.shipped": "HessianImportance RandomImportance ShippedImportance TaylorImportance",
        "hfp.importance.criteria.variation": "Variation VariationImportance",
        "hfp.importance.errors": "CriterionError",
        "hfp.importance.layers": "register_layer",
        "hfp.importance.registry": "Criterion create describe factory_of names register",
        "hfp.layers.table": "Slot",
    },
)
