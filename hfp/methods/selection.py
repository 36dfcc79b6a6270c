"""Which channels a submodel keeps: pure functions from a ratio (and scores) to a plan."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from hfp.errors import InputError
from hfp.methods.base import Setting
from hfp.reconstruct import ChannelGroups, Plan

Scores = Mapping[str, Tensor]


def keep_count(channels: int, ratio: float, group: str) -> int:
    """How many of a group's channels stay when the share `ratio` is removed, rounded to the nearest.

    Raises:
        InputError: none would stay.
    """
    kept = channels - math.floor(ratio * channels + 0.5)
    if kept < 1:
        raise InputError(
            f"removing {ratio:g} of the {channels} channels of {group} leaves none; "
            "use a smaller ratio or a wider model"
        )
    return kept


def check_counts(setting: Setting) -> None:
    """Refuse clients' ratios that leave a coupled group without channels.

    Raises:
        InputError: naming the ratio and the group.
    """
    for ratio in sorted({client.ratio for client in setting.clients}):
        check_ratio(setting.groups, ratio)


def check_ratio(groups: ChannelGroups, ratio: float) -> None:
    """Refuse a ratio that leaves a coupled group without channels.

    Raises:
        InputError: naming the ratio and the group.
    """
    for name in groups.names:
        keep_count(_unit_count(groups, name), ratio, name)


def keep_random(groups: ChannelGroups, ratio: float, generator: torch.Generator) -> Plan:
    """A uniformly random choice in every coupled group."""
    kept = {}
    for name in groups.names:
        count = _unit_count(groups, name)
        order = torch.randperm(count, generator=generator)
        kept[name] = _channels(groups, name, order[: keep_count(count, ratio, name)])
    return groups.plan(kept)


def keep_best(
    groups: ChannelGroups,
    ratio: float,
    scores: Scores,
    explore: float = 0.0,
    generator: torch.Generator | None = None,
) -> Plan:
    """The highest scores of every coupled group; equal scores keep the lower channel.

    The share `explore` of the kept channels is drawn uniformly from the others instead. Channels that can only go
    together (`ChannelGroups.units`: a grouped convolution's, say) count by their sum.
    """
    kept = {}
    for name in groups.names:
        count = _unit_count(groups, name)
        together = torch.zeros(count, dtype=scores[name].dtype).index_add_(0, groups.units[name], scores[name].cpu())
        order = together.argsort(descending=True, stable=True)
        keep = keep_count(count, ratio, name)
        best, rest = order.split([keep - math.floor(explore * keep), count - keep + math.floor(explore * keep)])
        drawn = rest[torch.randperm(len(rest), generator=generator)] if explore else rest
        kept[name] = _channels(groups, name, torch.cat([best, drawn])[:keep])
    return groups.plan(kept)


def keep_window(groups: ChannelGroups, ratio: float, start: int = 0) -> Plan:
    """``ceil((1 - ratio) C)`` consecutive channels of every coupled group, from `start` on and wrapping around.

    Channels that can only go together count as one. At least one stays, whatever the ratio.
    """
    kept = {}
    for name in groups.names:
        count = _unit_count(groups, name)
        width = math.ceil((1 - ratio) * count - 1e-9)  # 0.3 * 10 is a little more than 3
        kept[name] = _channels(groups, name, (start + torch.arange(max(width, 1))) % count)
    return groups.plan(kept)


def _unit_count(groups: ChannelGroups, name: str) -> int:
    return int(groups.units[name].max()) + 1


def _channels(groups: ChannelGroups, name: str, units: Tensor) -> Tensor:
    return torch.isin(groups.units[name], units).nonzero().view(-1)


def scores_of(groups: ChannelGroups, criterion: Callable[[Any], Tensor], weights: Mapping[str, Tensor]) -> Scores:
    """The criterion's score of every channel, by coupled group, on a model with these weights."""
    groups.load(weights)
    return {name: criterion(groups.group(name)) for name in groups.names}
