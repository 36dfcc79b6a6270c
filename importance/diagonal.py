r"""Diagonal criteria: gradient and curvature of every weight on its own, summed over a channel's weights."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor

from hfp.importance.errors import CriterionError
from hfp.importance.groups import members, root_name, width

FORMS = ("curvature", "paper", "taylor")


class DiagonalImportance(tp.importance.Importance):
    r"""Sum over a channel's weights `w` in all layers of its group of one of three forms, with `g` gradient and `h`
    curvature.

    form: "curvature" \(h w^2\); "paper" \(g w + h w^2\) (CA-HFP, arXiv 2603.12591, eq. 15, as printed); "taylor"
    \(-g w + \tfrac12 h w^2\) (its eq. 14: the second-order change of the loss when `w` becomes 0).
    """

    def __init__(self, form: str = "curvature") -> None:
        if form not in FORMS:
            raise CriterionError(f"form is one of {', '.join(FORMS)}, not {form!r}")
        self.form = form

    @abstractmethod
    def statistics(self, name: str) -> tuple[Tensor, Tensor]:
        """Gradient and curvature of the parameter with this name, each of its full shape."""

    @torch.no_grad()
    def __call__(self, group: Any) -> Tensor:
        """Scores of the group's channels, `[width]`, in units of the loss.

        Raises:
            CriterionError: no estimate yet, estimates of another model, or a layer type that the table doesn't know.
        """
        scores = None
        for member in members(group):
            for name, weight, slot in member.tensors():
                sums = member.sums(self._entries(name, weight), slot)
                scores = sums.new_zeros(width(group)) if scores is None else scores
                member.add_to(scores, sums)
        if scores is None:
            raise CriterionError(f"the group of {root_name(group)!r} has no weights to score")
        return scores

    def _entries(self, name: str, weight: Tensor) -> Tensor:
        gradient, curvature = self.statistics(name)
        if curvature.shape != weight.shape:
            raise CriterionError(
                f"{name!r} has shape {list(weight.shape)} and its estimates {list(curvature.shape)}: "
                "they are of another model; after pruning, call reset() and accumulate() again"
            )
        weight = weight.detach()
        gradient, curvature = gradient.to(weight), curvature.to(weight)
        if self.form == "curvature":
            return curvature * weight.square()
        if self.form == "paper":
            return gradient * weight + curvature * weight.square()
        return curvature * weight.square() / 2 - gradient * weight
