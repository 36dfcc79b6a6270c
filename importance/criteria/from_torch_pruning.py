"""torch-pruning's own criteria, under hfp's names."""

from __future__ import annotations

import torch_pruning as tp

from hfp.importance.criteria.shipped import ShippedImportance


def l1(**options: object) -> ShippedImportance:
    """The sum of the magnitudes of a channel's weights."""
    return ShippedImportance(tp.importance.GroupMagnitudeImportance(p=1, **options))


def l2(**options: object) -> ShippedImportance:
    """The Euclidean norm of a channel's weights."""
    return ShippedImportance(tp.importance.GroupMagnitudeImportance(p=2, **options))


def bn_scale(**options: object) -> ShippedImportance:
    """The magnitude of a channel's batch-norm scale."""
    return ShippedImportance(tp.importance.BNScaleImportance(**options))


def lamp(**options: object) -> ShippedImportance:
    """The squared weights of a channel over those of all channels that are not smaller."""
    return ShippedImportance(tp.importance.LAMPImportance(**options))


def fpgm(**options: object) -> ShippedImportance:
    """The distance of a channel's weights from those of all others."""
    return ShippedImportance(tp.importance.FPGMImportance(**options))
