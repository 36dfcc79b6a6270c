"""How many channels of each coupled group a client of a ratio keeps."""

from __future__ import annotations

import math

import torch

from hfp.errors import InputError
from hfp.reconstruct import Coupling, Plan


def keep_first(groups: Coupling, ratio: float) -> Plan:
    """Keep the first channels of every coupled group, rounded to the nearest number of them."""
    return groups.plan({name: torch.arange(count) for name, count in kept_counts(groups, ratio).items()})


def kept_counts(groups: Coupling, ratio: float) -> dict[str, int]:
    """Count the channels of each coupled group that stay when the share `ratio` is removed.

    Groups that are linked keep the same share, as near to ``1 - ratio`` as their sizes allow.

    Raises:
        InputError: a group would be left without channels.
    """
    counts: dict[str, int] = {}
    for names in groups.linked:
        parts = math.gcd(*(groups.sizes[name] for name in names))
        kept = keep_count(parts, ratio, " and ".join(names)) if parts > 1 else 1
        counts |= {name: kept * groups.sizes[name] // parts for name in names}
    return counts


def keep_count(channels: int, ratio: float, group: str) -> int:
    """Count the channels of a group that stay when the share `ratio` is removed, rounded to the nearest.

    Raises:
        InputError: no channel would stay.
    """
    kept = channels - math.floor(ratio * channels + 0.5)
    if kept < 1:
        raise InputError(
            f"removing {ratio:g} of the {channels} channels of {group} leaves none; "
            "use a smaller ratio or a wider model"
        )
    return kept
