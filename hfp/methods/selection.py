"""Which channels a submodel keeps: pure functions from a ratio (and scores) to a plan."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from hfp.errors import InputError
from hfp.reconstruct import ChannelGroups, Plan


def keep_count(channels: int, ratio: float, group: str) -> int:
    """How many of a group's channels stay when the share `ratio` is removed, rounded to the nearest.

    Raises:
        InputError: none would stay.
    """
    kept = channels - math.floor(ratio * channels + 0.5)
    if kept < 1:
        raise InputError(
            f"removing {ratio:g} of the {channels} channels of {group} leaves none; use a smaller ratio or a wider model"
        )
    return kept


def keep_random(groups: ChannelGroups, ratio: float, generator: torch.Generator) -> Plan:
    """A uniformly random choice in every coupled group."""
    return groups.plan({
        name: torch.randperm(size, generator=generator)[: keep_count(size, ratio, name)].sort().values.tolist()
        for name, size in groups.sizes.items()
    })


def keep_best(groups: ChannelGroups, ratio: float, criterion: Callable[..., Tensor]) -> Plan:
    """The highest scores of every coupled group; equal scores keep the lower channel."""
    kept = {}
    for name, size in groups.sizes.items():
        order = criterion(groups.group(name)).argsort(descending=True, stable=True)
        kept[name] = order[: keep_count(size, ratio, name)].sort().values.tolist()
    return groups.plan(kept)
