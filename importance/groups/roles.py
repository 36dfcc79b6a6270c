"""Sort the members of a coupled group by what they do with its channels: read, write, mix or pass them on."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from hfp.importance.capture.attention import READING
from hfp.importance.capture.norms import NORMS, side_along
from hfp.importance.errors import CriterionError
from hfp.importance.groups.members import GroupLayer, members, model_of, operations, parameter_name, root_name
from hfp.importance.layers import channels_of, slots_of
from hfp.layers.products import PRODUCTS, counts_of, groups_of


def roles_of(group: Any, passes_on: Collection[str]) -> tuple[list[GroupLayer], list[GroupLayer], list[GroupLayer]]:
    """Return the layers that read a group's channels one by one, the linear layers that write them, and the norms over
    them.

    Layers that pass channels on (batch-norm, activations, depthwise convolutions, and convolutions of which whole
    groups go) are none of these.

    Args:
        group: a torch-pruning group.
        passes_on: the names of parameters that are known to pass channels on.

    Raises:
        CriterionError: no layer reads or writes the channels, the table does not know a layer's type, or a parameter
            may be the weights of such a layer; the message names it.
    """
    readers: list[GroupLayer] = []
    writers: list[GroupLayer] = []
    mixers: list[GroupLayer] = []
    everyone = list(members(group))
    for member in everyone:
        layer = member.layer
        if isinstance(layer, nn.Parameter):
            attention, norm = _attention_reading(group, member), _norm_over(group, member)
            if norm is not None:
                if all(norm.name != other.name or norm.pruning_dim != other.pruning_dim for other in mixers):
                    mixers.append(norm)
            elif attention is not None and attention.name not in [reader.name for reader in readers]:
                readers.append(attention)
            elif attention is None and parameter_name(group, layer, member.name) not in passes_on:
                _check_passes_on(group, member)
            continue
        if not isinstance(layer, nn.Linear):
            slots_of(layer, member.direction, member.name)
        if isinstance(layer, NORMS):
            mixers.append(member)
        elif member.direction == "in" or isinstance(layer, nn.MultiheadAttention):
            if not _passes_groups_on(member, everyone):
                readers.append(member)
        elif isinstance(layer, nn.Linear):
            writers.append(member)
    if not readers and not writers:
        raise CriterionError(
            f"no layer reads the channels of {root_name(group)!r}: take empirical-fisher, or put it into ignored_layers"
        )
    return readers, writers, mixers


def _passes_groups_on(reader: GroupLayer, everyone: Sequence[GroupLayer]) -> bool:
    """Return whether a convolution's groups are channels of the group, so that each goes with what it reads."""
    count = groups_of(reader.layer)
    if count == 1 or isinstance(reader.layer, nn.Parameter):
        return False
    rows = []
    for side in ("in", "out"):
        line = torch.full((channels_of(reader.layer, side, reader.name),), -1)
        for member in everyone:
            if member.layer is reader.layer and member.direction == side:
                line[member.indices] = member.positions
        rows.append(line.view(count, -1))
    both = torch.cat(rows, 1)
    return bool((both == both[:, :1]).all())


def _check_passes_on(group: Any, member: GroupLayer) -> None:
    """Refuse a parameter that may be the weights of a layer whose type is not registered.

    Such a layer may read the channels.
    """
    path, _, attribute = member.name.rpartition(".")
    layer = model_of(group).get_submodule(path)
    assert isinstance(member.layer, nn.Parameter)
    shape = member.layer.shape
    embeds = len(shape) < 2 or shape[0] == 1 or sum(size > 1 for size in shape) < 2
    if not embeds and not isinstance(layer, nn.MultiheadAttention | nn.Embedding):
        kind, dim = type(layer).__name__, member.pruning_dim
        raise CriterionError(
            f"parameter {member.name!r} {list(shape)} of a {kind}: the table of layers doesn't say whether dimension "
            f"{dim} reads channels or passes them on; call hfp.importance.register_layer({kind}, 'in' or 'out', "
            f"(Slot({attribute!r}, {dim}),), channel_dim) first, take empirical-fisher, or put its group into "
            "ignored_layers"
        )


def _attention_reading(group: Any, member: GroupLayer) -> GroupLayer | None:
    """Return the attention whose inputs this parameter reads along its dimension 1; None if there is none."""
    path, _, attribute = member.name.rpartition(".")
    layer = model_of(group).get_submodule(path)
    if not isinstance(layer, nn.MultiheadAttention) or attribute not in READING:
        return None
    if member.pruning_dim != 1:
        heads = member.indices % layer.embed_dim // layer.head_dim
        if len(set(zip(heads.tolist(), member.positions.tolist(), strict=True))) > layer.num_heads:
            raise CriterionError(
                f"the group of {root_name(group)!r} is a part of every head of {path!r}: its share in queries and keys "
                "isn't recorded; prune whole heads, or put it into ignored_layers"
            )
        return None
    return replace(member, name=path, layer=layer, direction="in")


def _norm_over(group: Any, member: GroupLayer) -> GroupLayer | None:
    """Return the norm over several dimensions that a parameter scales or shifts; None if there is none.

    The channels run along the parameter's dimension, which is counted from the last one.
    """
    path, _, _ = member.name.rpartition(".")
    layer = model_of(group).get_submodule(path)
    if not isinstance(layer, nn.LayerNorm | nn.RMSNorm):
        return None
    dim = member.pruning_dim % len(layer.normalized_shape) - len(layer.normalized_shape)
    return replace(member, name=path, layer=layer, direction="out", pruning_dim=dim)


def statistics_side(member: GroupLayer) -> str:
    """Return the side under which the part of a norm's channels in its statistics is recorded."""
    dims = getattr(member.layer, "normalized_shape", ())
    return side_along(member.pruning_dim) if member.pruning_dim in range(-len(dims), -1) else "out"


def channels_at(member: GroupLayer, side: str) -> int:
    """Return how many channels the layer has at its input ("in") or output ("out")."""
    layer: Any = member.layer
    counts = counts_of(layer)
    if isinstance(layer, (*PRODUCTS, nn.GroupNorm)) and counts is not None:
        return int(getattr(layer, str(counts[side == "out"])))
    if isinstance(layer, nn.LayerNorm | nn.RMSNorm):
        return layer.normalized_shape[member.pruning_dim if side != "out" else -1]
    if isinstance(layer, nn.MultiheadAttention):
        return layer.embed_dim
    return channels_of(layer, member.direction, member.name)


def is_attention(group: Any) -> bool:
    """Return whether the group's channels meet in the products of attention.

    The products inside torch's own attention do not count: its members read the channels as any layer does.
    """
    if any(isinstance(member.layer, nn.MultiheadAttention) for member in members(group)):
        return False
    return any("softmax" in name.lower() or "scaleddotproduct" in name.lower() for name in operations(group))
