"""The l1 norm of filters, by which FedMP and DapperFL rank channels (Li et al., ICLR 2017)."""

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
    """Sum the absolute weights of the convolutions and linear layers that write a group's channels, `[width]`.

    Layers that read the channels don't count: their weights belong to the filters of other channels.
    """
    scores = None
    for member in members(group):
        if member.direction == "out" and isinstance(member.layer, PRODUCTS):
            weight = next(entry for entry in member.tensors() if entry[1].dim() > 1)
            if scores is None:
                scores = weight[1].new_zeros(width(group), dtype=torch.float32)
            member.add_to(scores, member.sums(weight[1].abs(), weight[2]))
    return torch.zeros(width(group)) if scores is None else scores
