"""Criteria: what does removing a channel do to the loss? As torch-pruning Importance classes."""

from __future__ import annotations

import torch_pruning as tp

from hfp.importance.diagonal import DiagonalImportance
from hfp.importance.errors import CriterionError
from hfp.importance.group_fisher import GroupFisherImportance
from hfp.importance.layers import Slot, register_layer
from hfp.importance.registry import Criterion, create, describe, names, register
from hfp.importance.shipped import RandomImportance, ShippedImportance, TaylorImportance
from hfp.importance.variation import Variation, VariationImportance

__all__ = [
    "Criterion",
    "CriterionError",
    "DiagonalImportance",
    "GroupFisherImportance",
    "RandomImportance",
    "ShippedImportance",
    "Slot",
    "TaylorImportance",
    "Variation",
    "VariationImportance",
    "create",
    "describe",
    "names",
    "register",
    "register_layer",
]


def _magnitude(p: int, **options: object) -> ShippedImportance:
    return ShippedImportance(tp.importance.GroupMagnitudeImportance(p=p, **options))


register("variation", VariationImportance, source="CA-HFP, arXiv 2603.12591, eq. 14 and 15", needs="variation")
register("group-fisher", GroupFisherImportance, source="Liu et al., Group Fisher Pruning, ICML 2021", needs="data")
register("l1", lambda **options: _magnitude(1, **options), source="Li et al., Pruning Filters, ICLR 2017")
register("l2", lambda **options: _magnitude(2, **options), source="Fang et al., DepGraph, CVPR 2023")
register("random", RandomImportance, source="uniform, seeded")
register(
    "bn-scale",
    lambda **options: ShippedImportance(tp.importance.BNScaleImportance(**options)),
    source="Liu et al., Network Slimming, ICCV 2017",
)
register(
    "lamp",
    lambda **options: ShippedImportance(tp.importance.LAMPImportance(**options)),
    source="Lee et al., LAMP, ICLR 2021",
)
register("taylor", TaylorImportance, source="Molchanov et al., CVPR 2019", needs="data")
