"""The l1 norm of filters (Li et al., ICLR 2017): how FedMP and DapperFL rank channels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from hfp.importance.groups.members import members, width
from hfp.layers.products import PRODUCTS
from hfp.methods.blocks.selection import Scores, scores_of
from hfp.methods.interface.values import State
from hfp.reconstruct import Coupling


def filter_scores(groups: Coupling, model: nn.Module, weights: State) -> Scores:
    """By coupled group, the l1 norm of every channel's filters in `model` with these weights."""
    return scores_of(groups, model, filter_norms, weights)


@torch.no_grad()
def filter_norms(group: Any) -> Tensor:
    """The l1 norm of the weights that make each of the group's channels, over the convolutions and linear layers.

    Layers that read the channel don't count: their weights belong to the filters of other channels.
    """
    scores = None
    for member in members(group):
        if member.direction == "out" and isinstance(member.layer, PRODUCTS):
            weight = next(entry for entry in member.tensors() if entry[1].dim() > 1)
            if scores is None:
                scores = weight[1].new_zeros(width(group), dtype=torch.float32)
            member.add_to(scores, member.sums(weight[1].abs(), weight[2]))
    return torch.zeros(width(group)) if scores is None else scores
