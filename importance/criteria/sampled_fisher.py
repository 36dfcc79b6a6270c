"""Score channels by the diagonal of the Fisher, with labels drawn from the model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hfp.importance.bases.accumulated import AccumulatedImportance
from hfp.importance.capture.batches import Pass
from hfp.importance.capture.logits import logits_of
from hfp.importance.capture.moments import GradientMoments
from hfp.importance.capture.per_sample import gradient_moments_of
from hfp.importance.options import check_options


class SampledFisherImportance(AccumulatedImportance):
    r"""Diagonal criterion with \(h = E_n E_{y \sim p(y|x_n)} (\nabla\ell(x_n, y))^2\), with one draw of `y` per sample.

    Labels are drawn from the model's own softmax, which makes `h` the diagonal of the Fisher. For cross-entropy that is
    the Gauss-Newton matrix. `g` is the mean gradient at the drawn labels, which is 0 in expectation. `E_n` is the mean
    over samples. `loss_fn(output, labels)` must be the negative log-likelihood of integer labels. The batches' targets
    are not used.

    Cost: the same as that of the empirical Fisher.

    Args:
        form: as for `DiagonalImportance`.
        reduction: as for `DiagonalImportance`.
        seed: the seed of the draws, which come from a generator of the criterion's own. They do not depend on how the
            samples are batched.

    Source: Kunstner et al., arXiv 1905.12558; Martens, arXiv 1412.1193.

    >>> import torch
    >>> from hfp.importance import SampledFisherImportance
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3))
    >>> batches = [(torch.randn(8, 4), torch.randint(3, (8,)))]
    >>> criterion = SampledFisherImportance(seed=1)
    >>> criterion.accumulate(model, batches, torch.nn.functional.cross_entropy)
    >>> criterion.samples
    8
    """

    def __init__(self, form: str = "curvature", reduction: str = "sum", seed: int = 0) -> None:
        super().__init__(form, reduction)
        check_options(seed=seed)
        self._draws = np.random.default_rng(seed)

    def _measure(self, model: nn.Module, batches: Iterable[Any], run: Pass) -> GradientMoments:
        def relabel(output: Any, size: int) -> Tensor:
            return draw_labels(logits_of(output, size), self._draws)

        return gradient_moments_of(model, batches, replace(run, relabel=relabel))


def draw_labels(logits: Tensor, draws: np.random.Generator) -> Tensor:
    """Draw one label per row of logits `[samples, classes]`, as int64 `[samples]`."""
    levels = torch.from_numpy(draws.random((len(logits), 1)))
    labels = (logits.detach().cpu().double().softmax(1).cumsum(1) < levels).sum(1)
    return labels.clamp_max(logits.shape[1] - 1).to(logits.device)
