"""Criteria say what removing a channel does to the loss. Each is a torch-pruning Importance.

A criterion maps a coupled group (torch-pruning's `Group`) to one score per channel. The channels with the lowest scores
go first.

Read `registry` for the criteria that exist (`create`, `names`). Then read `bases/diagonal` and `bases/gated`, the two
families: the first sums over a channel's weights, the second takes derivatives of a channel's gate. `criteria` has one
criterion per file. `capture` has what one pass over data records. `groups` has what a criterion reads from a group.
`layers` adds a user's layer type to the table of layers, which is in `hfp.layers`. A criterion is loaded, and torch
with it, when it is first used.

Nothing here finds groups. torch-pruning does, or `hfp.reconstruct.Coupling`, which follows labels through the forward
pass.

A criterion of one's own takes two import lines:

>>> from hfp.importance import DiagonalImportance, create, register
>>> import torch
>>> model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 2))
>>> class SquaredWeights(DiagonalImportance):
...     def statistics(self, name):
...         weight = model.get_parameter(name)
...         return torch.zeros_like(weight), torch.ones_like(weight)
>>> register("squared", SquaredWeights, source="an example")
>>> import hfp
>>> hfp.prune(model, torch.randn(2, 4), hfp.Budget(ratio=0.5), importance="squared").report.ratio
0.5
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hfp.lazy import lazily

if TYPE_CHECKING:
    from hfp.importance.bases.diagonal import DiagonalImportance
    from hfp.importance.bases.scaled import ScaledImportance
    from hfp.importance.criteria.empirical_fisher import EmpiricalFisherImportance
    from hfp.importance.criteria.group_fisher import GroupFisherImportance
    from hfp.importance.criteria.group_kl import GroupKLImportance
    from hfp.importance.criteria.group_loss import GroupLossImportance
    from hfp.importance.criteria.hutchinson import HutchinsonImportance
    from hfp.importance.criteria.kronecker import KroneckerImportance
    from hfp.importance.criteria.sampled_fisher import SampledFisherImportance
    from hfp.importance.criteria.shipped import HessianImportance, RandomImportance, ShippedImportance, TaylorImportance
    from hfp.importance.criteria.variation import Variation, VariationImportance
    from hfp.importance.errors import CriterionError
    from hfp.importance.layers import register_layer
    from hfp.importance.registry import Criterion, create, describe, factory_of, names, register
    from hfp.layers.table import Slot

__all__ = [
    "Criterion",
    "CriterionError",
    "DiagonalImportance",
    "EmpiricalFisherImportance",
    "GroupFisherImportance",
    "GroupKLImportance",
    "GroupLossImportance",
    "HessianImportance",
    "HutchinsonImportance",
    "KroneckerImportance",
    "RandomImportance",
    "SampledFisherImportance",
    "ScaledImportance",
    "ShippedImportance",
    "Slot",
    "TaylorImportance",
    "Variation",
    "VariationImportance",
    "create",
    "describe",
    "factory_of",
    "names",
    "register",
    "register_layer",
]

__getattr__, __dir__ = lazily(
    __name__,
    {
        "hfp.importance.bases.diagonal": "DiagonalImportance",
        "hfp.importance.bases.scaled": "ScaledImportance",
        "hfp.importance.criteria.empirical_fisher": "EmpiricalFisherImportance",
        "hfp.importance.criteria.group_fisher": "GroupFisherImportance",
        "hfp.importance.criteria.group_kl": "GroupKLImportance",
        "hfp.importance.criteria.group_loss": "GroupLossImportance",
        "hfp.importance.criteria.hutchinson": "HutchinsonImportance",
        "hfp.importance.criteria.kronecker": "KroneckerImportance",
        "hfp.importance.criteria.sampled_fisher": "SampledFisherImportance",
        "hfp.importance.criteria.shipped": "HessianImportance RandomImportance ShippedImportance TaylorImportance",
        "hfp.importance.criteria.variation": "Variation VariationImportance",
        "hfp.importance.errors": "CriterionError",
        "hfp.importance.layers": "register_layer",
        "hfp.importance.registry": "Criterion create describe factory_of names register",
        "hfp.layers.table": "Slot",
    },
)
