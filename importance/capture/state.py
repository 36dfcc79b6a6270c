"""Work on somebody's model and leave it as it was, also when the work fails."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from hfp.layers.calling import buffers_kept, random_state_kept


def differentiable(parameter: Tensor) -> bool:
    """Return whether a parameter can have a gradient, as whole numbers can't."""
    return parameter.is_floating_point() or parameter.is_complex()


@contextmanager
def untouched(model: nn.Module, *, parameters_require_grad: bool, evaluates: bool = True) -> Iterator[None]:
    """Put a model in evaluation mode with gradients enabled, and put back everything of the caller's on leaving.

    Without `evaluates`, as for a loss, the modules stay in the modes that they have.

    Evaluation mode fixes batch-norm's statistics, so that a batch's samples do not interact and per-sample gradients
    exist. Every module's mode, every parameter's `requires_grad` and `.grad`, the buffers, and the random state of
    Python, NumPy and torch (on all devices) are put back.
    """
    modes = [(module, module.training) for module in model.modules()]
    parameters = [(parameter, parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    with random_state_kept(), buffers_kept(model), torch.enable_grad():
        try:
            if evaluates:
                model.eval()
            for parameter, _, _ in parameters:
                parameter.requires_grad_(parameters_require_grad and differentiable(parameter))
                parameter.grad = None
            yield
        finally:
            for module, training in modes:
                module.training = training
            for parameter, required, grad in parameters:
                parameter.requires_grad_(required)
                parameter.grad = grad
