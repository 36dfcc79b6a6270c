"""Models that worker processes import by their name."""

from __future__ import annotations

from torch import nn


def dropping() -> nn.Module:
    """A small network for digits with batch-norm and dropout, without attributes of its own."""
    return nn.Sequential(
        *(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.2)),
        *(nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        *(nn.Dropout(0.2), nn.Linear(16, 10)),
    )


def two_norms() -> nn.Module:
    """A network with batch-norm and with instance norm, which keeps running statistics too."""
    kept = nn.InstanceNorm2d(4, affine=True, track_running_stats=True)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), kept, nn.Flatten(), nn.Linear(64, 10)
    )
