"""The l1 norm of filters, by which FedMP and DapperFL rank channels (Li et al., ICLR 2017)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from hfp.importance.groups.members import GroupLayer, members, model_of, width
from hfp.layers.products import PRODUCTS, owner_of
from hfp.layers.table import Slot
from hfp.methods.blocks.selection import Scores, scores_of
from hfp.methods.interface.values import State
from hfp.reconstruct import Coupling


def filter_scores(groups: Coupling, model: nn.Module, weights: State) -> Scores:
    """Score the channels of a model by the l1 norm of their filters.

    Args:
        groups: the model's coupled groups.
        model: the architecture.
        weights: the values that are scored.

    Returns:
        Coupled group's name to the scores of its channels, `[channels]`.
    """
    return scores_of(groups, model, filter_norms, weights)


@torch.no_grad()
def filter_norms(group: Any) -> Tensor:
    """Sum the absolute weights of the `filters_of` a group's channels, `[width]`.

    Layers that read the channels don't count: their weights belong to the filters of other channels.
    """
    scores = torch.zeros(width(group))
    for number, (member, _, weight, slot) in enumerate(filters_of(group)):
        if number == 0:
            scores = weight.new_zeros(width(group), dtype=torch.float32)
        member.add_to(scores, member.sums(weight.abs(), slot))
    return scores


def filters_of(group: Any) -> Iterator[tuple[GroupLayer, str, Tensor, Slot]]:
    """Yield the weights that write a group's channels: member, name, tensor and the slot in which the channels lie.

    These are the weights of convolutions and linear layers. Channels that none of them writes may be made by rows of
    other parameters: those of a recurrent layer's gates, or of queries, keys and values in `nn.MultiheadAttention`.
    Parameters of other modules don't count, since nothing tells whether they write the channels or read them.
    """
    writers = [member for member in members(group) if member.direction == "out"]
    products = [member for member in writers if isinstance(member.layer, PRODUCTS)]
    for member in products or (writer for writer in writers if _has_rows(group, writer)):
        for name, weight, slot in member.tensors():
            if weight.dim() > 1 and (products or slot.dim == 0):
                yield member, name, weight, slot


def _has_rows(group: Any, member: GroupLayer) -> bool:
    owner = model_of(group).get_submodule(owner_of(member.name)[0])
    if "parametrizations" in member.name.split("."):
        return False  # a part of a weight, such as its direction, and not its rows
    return isinstance(owner, (nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention))
