"""Pure functions from a ratio, and scores where there are any, to the channels that a submodel keeps."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hfp.errors import InputError
from hfp.importance.groups.members import members
from hfp.layers.products import computed_weight
from hfp.methods.interface.counts import kept_counts
from hfp.methods.interface.values import MethodContext
from hfp.reconstruct import Coupling, IndexMap, Plan
from hfp.reconstruct.models.compact import build

Scores = Mapping[str, Tensor]


def check_counts(context: MethodContext) -> None:
    """Refuse clients' ratios that leave a coupled group without channels.

    Raises:
        InputError: a ratio does so; the message names the ratio and the group.
    """
    for ratio in sorted({client.ratio for client in context.clients}):
        kept_counts(context.groups, ratio)


def check_own_weights(method: str, context: MethodContext) -> None:
    """Refuse a model with channels whose weights are computed, because clients change what they are computed from.

    Raises:
        InputError: a layer's weight is computed; the message names the layer.
    """
    group = context.groups.groups_of(context.model)
    for name in context.groups.names:
        for member in members(group(name)):
            if isinstance(member.layer, nn.Module) and computed_weight(member.layer) is not None:
                raise InputError(
                    f"{method} scores channels by weights that clients train, and {member.name} computes its weight "
                    "from others, as weight norm does; use a method that scores none, such as heterofl or fedavg"
                )


def keep_random(groups: Coupling, ratio: float, generator: torch.Generator) -> Plan:
    """Keep a uniformly random choice of channels in every coupled group."""
    return groups.plan(
        {
            name: torch.randperm(groups.sizes[name], generator=generator)[:count].sort().values
            for name, count in kept_counts(groups, ratio).items()
        }
    )


def keep_best(
    groups: Coupling,
    ratio: float,
    scores: Scores,
    explore: float = 0.0,
    generator: torch.Generator | None = None,
) -> Plan:
    """Keep the channels with the highest scores in every coupled group; of equal scores the lower channel is kept.

    Args:
        groups: the model's coupled groups.
        ratio: the share of channels to remove.
        scores: coupled group's name to the scores of its channels, `[channels]`.
        explore: this share of the kept channels is drawn uniformly from those that don't score best.
        generator: draws them.

    Raises:
        InputError: a group would be left without channels.
    """
    kept = {}
    counts = kept_counts(groups, ratio)
    together = torch.cat([scores[name] for name in counts]).cpu()  # one transfer for all groups
    here = dict(zip(counts, together.split([len(scores[name]) for name in counts]), strict=True))
    for name, keep in counts.items():
        order = here[name].argsort(descending=True, stable=True)
        certain = keep - math.floor(explore * keep)
        best, rest = order[:certain], order[certain:]
        drawn = rest[torch.randperm(len(rest), generator=generator)] if explore else rest
        kept[name] = torch.cat([best, drawn])[:keep].sort().values
    return groups.plan(kept)


def keep_window(groups: Coupling, ratio: float, start: int = 0, turn: float = 0.0) -> Plan:
    """Keep ``ceil((1 - ratio) C)`` consecutive channels of every coupled group of ``C``, wrapping around at the end.

    At least one channel stays, whatever the ratio. Groups that are linked keep the same share, rounded up as well.

    Args:
        groups: the model's coupled groups.
        ratio: the share of channels to remove.
        start: the first channel that is kept.
        turn: the share of each group's channels, rounded down, by which its window moves on from there.
    """
    kept = {}
    for names in groups.linked:
        parts = math.gcd(*(groups.sizes[name] for name in names))
        width = max(math.ceil((1 - ratio) * parts - 1e-9), 1)  # 0.3 * 10 is a little more than 3
        for name in names:
            size = groups.sizes[name]
            first = start + math.floor(turn * parts + 1e-9) * size // parts
            kept[name] = ((first + torch.arange(width * size // parts)) % size).sort().values
    return groups.plan(kept)


def scores_of(
    groups: Coupling, model: nn.Module, criterion: Callable[[Any], Tensor], weights: Mapping[str, Tensor]
) -> Scores:
    """Score every channel by a criterion, on `model` with these weights and on their device.

    Returns:
        Coupled group's name to the scores of its channels, `[channels]`.
    """
    group = groups.groups_of(build(model, IndexMap.identity(model), weights))
    return {name: criterion(group(name)) for name in groups.names}
