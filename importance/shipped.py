"""torch-pruning's own usable criteria, with what they get wrong about groups put right."""

from __future__ import annotations

from copy import copy
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor

from hfp.importance.errors import CriterionError
from hfp.importance.groups import root_name, width


class ShippedImportance(tp.importance.Importance):
    """One of torch-pruning's criteria on a copy of the group (some sort its index lists in place), never a silent
    skip.
    """

    def __init__(self, inner: tp.importance.Importance) -> None:
        self.inner = inner

    @torch.no_grad()
    def __call__(self, group: Any) -> Tensor:
        """Scores of the group's channels, `[width]`.

        Raises:
            CriterionError: when the criterion has nothing to say about the group, which torch-pruning would leave out
                silently.
        """
        scores = self.inner(_private(group))
        if scores is None:
            raise CriterionError(
                f"{type(self.inner).__name__} has nothing to score in the group of {root_name(group)!r}: "
                "choose another criterion"
            )
        return scores


class TaylorImportance(ShippedImportance):
    """torch-pruning's first-order criterion, from the `.grad` that the caller left on the model."""

    def __init__(self, **options: Any) -> None:
        super().__init__(tp.importance.GroupTaylorImportance(**options))

    def __call__(self, group: Any) -> Tensor:
        """Scores of the group's channels, `[width]`.

        Raises:
            CriterionError: when a layer of the group has no gradient.
        """
        for item in group:
            layer = item.dep.target.module
            weight = getattr(layer, "weight", None)
            if isinstance(layer, tuple(self.inner.target_types)) and weight is not None and weight.grad is None:
                raise CriterionError(
                    f"{item.dep.target.name!r} has no gradient, and taylor reads .grad: call loss.backward() first"
                )
        return super().__call__(group)


class RandomImportance(tp.importance.Importance):
    """Uniform random scores from a generator of its own, so that the caller's random state isn't consumed."""

    def __init__(self, seed: int = 0) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, group: Any) -> Tensor:
        """Scores of the group's channels, `[width]`, new ones at every call."""
        return torch.rand(width(group), generator=self._generator)


def _private(group: Any) -> Any:
    twin = copy(group)
    twin._group = []
    for item in group:
        mine = type(item)(item.dep, list(item.idxs))
        mine.root_idxs = list(item.root_idxs)
        twin._group.append(mine)
    return twin
