"""The mean gradient of every parameter, which first-order criteria read."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from hfp.importance.accumulated import Moments, check_finite
from hfp.importance.batches import Pass
from hfp.importance.state import untouched


def mean_gradient_of(model: nn.Module, batches: Iterable[Any], run: Pass) -> Moments:
    """Sums over samples of the gradient, by ordinary backward passes; there is no curvature (zeros).

    Raises:
        CriterionError: a gradient that isn't finite, and what `Pass` raises.
    """
    total: Moments | None = None
    names = [name for name, _ in model.named_parameters()]
    with untouched(model, parameters_require_grad=True):
        for batch, size in run.batches(batches, model):
            output = run.output(model, batch)
            loss = run.loss_sum(output, run.target(output, batch, size), size) * run.scale
            values = torch.autograd.grad(loss, list(model.parameters()), materialize_grads=True)
            gradient = check_finite({name: value / run.scale for name, value in zip(names, values, strict=True)})
            moments = Moments(size, gradient, {name: torch.zeros_like(value) for name, value in gradient.items()})
            total = moments if total is None else total.plus(moments)
    assert total is not None
    return total
