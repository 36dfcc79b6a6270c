"""Offer torch-pruning's own criteria under hfp's names."""

from __future__ import annotations

import torch_pruning as tp

from hfp.importance.criteria.shipped import ShippedImportance


def l1(**options: object) -> ShippedImportance:
    """Score a channel by the sum of the magnitudes of its weights."""
    return ShippedImportance(tp.importance.GroupMagnitudeImportance(p=1, **options))


def l2(**options: object) -> ShippedImportance:
    """Score a channel by the Euclidean norm of its weights."""
    return ShippedImportance(tp.importance.GroupMagnitudeImportance(p=2, **options))


def bn_scale(**options: object) -> ShippedImportance:
    """Score a channel by the magnitude of its batch-norm scale."""
    return ShippedImportance(tp.importance.BNScaleImportance(**options))


def lamp(**options: object) -> ShippedImportance:
    """Score a channel by its squared weights over those of all channels that are not smaller."""
    return ShippedImportance(tp.importance.LAMPImportance(**options))


def fpgm(**options: object) -> ShippedImportance:
    """Score a channel by the distance of its weights from those of all others."""
    return ShippedImportance(tp.importance.FPGMImportance(**options))
