"""Criteria: what does removing a channel do to the loss? As torch-pruning Importance classes."""

from __future__ import annotations

from functools import partial

import torch_pruning as tp

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
from hfp.importance.layers import Slot, register_layer
from hfp.importance.registry import Criterion, create, describe, names, register

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
    "names",
    "register",
    "register_layer",
]


def _magnitude(p: int, **options: object) -> ShippedImportance:
    return ShippedImportance(tp.importance.GroupMagnitudeImportance(p=p, **options))


def _bn_scale(**options: object) -> ShippedImportance:
    return ShippedImportance(tp.importance.BNScaleImportance(**options))


def _lamp(**options: object) -> ShippedImportance:
    return ShippedImportance(tp.importance.LAMPImportance(**options))


def _fpgm(**options: object) -> ShippedImportance:
    return ShippedImportance(tp.importance.FPGMImportance(**options))


register("variation", VariationImportance, source="CA-HFP, arXiv 2603.12591", needs="variation")
register("group-fisher", GroupFisherImportance, source="Liu et al., Group Fisher Pruning, ICML 2021", needs="data")
register("group-kl", GroupKLImportance, source="linearised gates, exact divergence; this project", needs="data")
register("group-loss", GroupLossImportance, source="linearised gates, greedy over a group; this project", needs="data")
register(
    "kronecker", KroneckerImportance, source="K-FAC, arXiv 1503.05671, greedy over a group; this project", needs="data"
)
register("empirical-fisher", EmpiricalFisherImportance, source="Theis et al., arXiv 1801.05787", needs="data")
register("sampled-fisher", SampledFisherImportance, source="Martens, arXiv 1412.1193", needs="data")
register("hutchinson", HutchinsonImportance, source="Yao et al., AdaHessian, arXiv 2006.00719", needs="data")
register("l1", partial(_magnitude, 1), source="Li et al., Pruning Filters, ICLR 2017")
register("l2", partial(_magnitude, 2), source="Fang et al., DepGraph, CVPR 2023")
register("random", RandomImportance, source="uniform, seeded")
register("bn-scale", _bn_scale, source="Liu et al., Network Slimming, ICCV 2017")
register("lamp", _lamp, source="Lee et al., LAMP, ICLR 2021")
register("fpgm", _fpgm, source="He et al., Geometric Median, CVPR 2019")
register("taylor", TaylorImportance, source="Molchanov et al., CVPR 2019", needs="data")
register(
    "hessian", HessianImportance, source="LeCun et al., Optimal Brain Damage, 1989, in torch-pruning", needs="data"
)
