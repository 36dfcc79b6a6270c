"""Diagonal criteria take each weight by itself: they sum its gradient and curvature over a channel."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor

from hfp.importance.capture.moments import check_real, wide
from hfp.importance.errors import CriterionError
from hfp.importance.groups.members import GroupLayer, members, parameter_name, root_name, scoring, width
from hfp.importance.options import check_options
from hfp.layers.table import Slot


class DiagonalImportance(tp.importance.Importance):  # type: ignore[misc]
    r"""Score a channel by the sum over its weights `w` of a form of their gradient `g` and curvature `h`.

    A subclass says in `statistics` where `g` and `h` come from.

    Args:
        form: "curvature" (default) is \(h w^2\). "paper" is \(g w + h w^2\), as equation 15 of CA-HFP (arXiv
            2603.12591) is printed. "taylor" is \(-g w + \tfrac12 h w^2\), its equation 14: the second-order change of
            the loss when `w` becomes 0.
        reduction: how the sums of the layers that hold a channel become its score. "sum" (default) adds them, which
            gives the change of the loss when all are removed. "mean" and "max" take their mean and their maximum.
            "first" takes the root's layer alone.

    Raises:
        CriterionError: the form or the reduction is unknown.

    >>> import torch
    >>> from hfp.importance import DiagonalImportance
    >>> class SquaredWeights(DiagonalImportance):
    ...     def statistics(self, name):
    ...         weight = model.get_parameter(name)
    ...         return torch.zeros_like(weight), torch.ones_like(weight)
    >>> from hfp.reconstruct import Coupling
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 2))
    >>> group = Coupling.trace(model, torch.randn(2, 4)).groups_of(model)("0")
    >>> SquaredWeights()(group).shape
    torch.Size([6])
    """

    def __init__(self, form: str = "curvature", reduction: str = "sum") -> None:
        check_options(form=form, reduction=reduction)
        self.form = form
        self.reduction = reduction

    @abstractmethod
    def statistics(self, name: str) -> tuple[Tensor, Tensor]:
        """Return the gradient and the curvature of the parameter with this name, each in its full shape."""

    @scoring
    def __call__(self, group: Any) -> Tensor:
        """Return the scores of the group's channels, `[width]`, in units of the loss.

        Raises:
            CriterionError: there is no estimate yet, the estimates are of another model, weights are complex, or the
                table of layers does not know a layer's type.
        """
        layers = []
        # A tensor is known by its name here, since a weight that is computed is a new tensor each time.
        counted: dict[tuple[str, int], str] = {}  # tied weights are removed together, so they count once
        roles: dict[str, list[tuple[GroupLayer, Slot]]] = {}
        for member in members(group):
            found = []
            for own, weight, slot in member.tensors():
                name = parameter_name(group, weight, own)
                if counted.setdefault((name, slot.dim), member.name) == member.name:
                    found.append((name, self._entries(name, weight), slot))
            if found:
                sums = torch.stack([member.sums(entries, slot) for _, entries, slot in found]).sum(0)
                layers.append(sums.new_zeros(width(group)))
                member.add_to(layers[-1], sums)
            for name, entries, slot in found:
                for before in roles.setdefault(name, []):  # an entry may be one of a channel's along two dimensions
                    layers[-1] -= counted_twice(entries, (member, slot), before, width(group))
                roles[name].append((member, slot))
        if not layers:
            raise CriterionError(f"the group of {root_name(group)!r} has no weights to score")
        stacked = torch.stack(layers)
        if self.reduction == "first":
            return stacked[0]
        return stacked.amax(0) if self.reduction == "max" else getattr(stacked, self.reduction)(0)

    def _entries(self, name: str, weight: Tensor) -> Tensor:
        check_real(name, weight)
        gradient, curvature = self.statistics(name)
        if curvature.shape != weight.shape:
            raise CriterionError(
                f"{name!r} has shape {list(weight.shape)} and its estimates {list(curvature.shape)}: "
                "they are of another model; after pruning, call reset() and accumulate() again"
            )
        weight = wide(weight.detach())
        gradient, curvature = gradient.to(weight), curvature.to(weight)
        if self.form == "curvature":
            return curvature * weight.square()
        if self.form == "paper":
            return gradient * weight + curvature * weight.square()
        return curvature * weight.square() / 2 - gradient * weight


def counted_twice(entries: Tensor, one: tuple[GroupLayer, Slot], other: tuple[GroupLayer, Slot], width: int) -> Tensor:
    """Sum the entries of a tensor that two roles of it give to the same channel, `[width]`.

    Args:
        entries: the entries.
        one: a member that holds the tensor, and along which dimension of it the channels run there.
        other: the same of another role.
        width: how many channels there are.
    """
    first, second = (member.positions_in(entries.shape, slot).to(entries.device) for member, slot in (one, other))
    both = ((first == second) & (first >= 0)).expand_as(entries)
    return entries.new_zeros(width).index_add_(0, first.expand_as(entries)[both], entries[both])
