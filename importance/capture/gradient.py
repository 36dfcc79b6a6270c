"""Compute the mean gradient of every parameter, which first-order criteria read."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from hfp.importance.capture.batches import Pass
from hfp.importance.capture.moments import GradientMoments, check_finite, wide
from hfp.importance.capture.state import untouched


def mean_gradient_of(model: nn.Module, batches: Iterable[Any], run: Pass) -> GradientMoments:
    """Sum the gradient over samples by ordinary backward passes; the curvature is zero.

    Raises:
        CriterionError: a gradient is not finite, or `Pass` refuses a batch or the loss.
    """
    total: GradientMoments | None = None
    with untouched(model, parameters_require_grad=True):
        for batch, size in run.batches(batches, model):
            output, scale = run.output(model, batch), run.scale_of(size)
            (run.loss_sum(output, run.target(output, batch, size), size) * scale).backward()
            gradient = check_finite({name: _taken(parameter) / scale for name, parameter in model.named_parameters()})
            moments = GradientMoments(
                size, gradient, {name: torch.zeros_like(value) for name, value in gradient.items()}
            )
            total = moments if total is None else total.plus(moments)
    assert total is not None
    return total


def _taken(parameter: nn.Parameter) -> Tensor:
    found, parameter.grad = parameter.grad, None
    return wide(torch.zeros_like(parameter) if found is None else found)
