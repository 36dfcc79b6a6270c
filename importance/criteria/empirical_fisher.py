"""Score channels by the diagonal of the empirical Fisher."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from hfp.importance.bases.accumulated import AccumulatedImportance
from hfp.importance.capture.batches import Pass
from hfp.importance.capture.moments import GradientMoments
from hfp.importance.capture.per_sample import gradient_moments_of


class EmpiricalFisherImportance(AccumulatedImportance):
    r"""Diagonal criterion with \(g = E_n \nabla\ell_n\) and \(h = E_n (\nabla\ell_n)^2\), entry by entry.

    `E` is the mean over samples. Gradients are taken at the true labels, so `h` is the empirical Fisher, not the
    Fisher. The result equals that of one backward pass per sample.

    Cost: one forward and one backward per batch, and one matrix product per layer. A model with parameters outside
    layers (class tokens, position embeddings) takes one more forward and backward.

    Args:
        form: as for `DiagonalImportance`.
        reduction: as for `DiagonalImportance`.

    Source: LeCun et al., Optimal Brain Damage, 1989; Theis et al., arXiv 1801.05787, for the Fisher in it.

    >>> import torch
    >>> from hfp.importance import EmpiricalFisherImportance
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3))
    >>> batches = [(torch.randn(8, 4), torch.randint(3, (8,)))]
    >>> criterion = EmpiricalFisherImportance()
    >>> criterion.accumulate(model, batches, torch.nn.functional.cross_entropy)
    >>> criterion.samples
    8
    """

    def _measure(self, model: nn.Module, batches: Iterable[Any], run: Pass) -> GradientMoments:
        return gradient_moments_of(model, batches, run)
