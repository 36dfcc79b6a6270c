"""Add up the per-sample gradients of every parameter of a model, and their squares, over batches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from hfp.importance.capture.batches import Pass, mapped
from hfp.importance.capture.calls import layers_and_bare, recording_calls
from hfp.importance.capture.moments import WAY_OUT, GradientMoments, check_finite
from hfp.importance.capture.squares import gradient_moments
from hfp.importance.capture.state import untouched
from hfp.importance.errors import CriterionError
from hfp.layers.products import computed_weight

Sums = dict[str, Tensor]


def gradient_moments_of(model: nn.Module, batches: Iterable[Any], run: Pass) -> GradientMoments:
    """Sum the gradient and its square over samples, in one pass over the batches.

    Raises:
        CriterionError: a gradient is not finite or cannot be formed per sample, or `Pass` refuses a batch or the loss.
    """
    total: GradientMoments | None = None
    layers, bare = layers_and_bare(model)
    with untouched(model, parameters_require_grad=False):
        for batch, size in run.batches(batches, model):
            gradient, square, target, unsplit = _of_layers(model, layers, batch, size, run)
            if bare or unsplit:
                _add_bare(model, bare + unsplit, (batch, target), size, run, gradient, square)
            moments = GradientMoments(size, check_finite(gradient), square)
            total = moments if total is None else total.plus(moments)
    assert total is not None
    return total


def _of_layers(
    model: nn.Module, layers: Mapping[str, nn.Module], batch: Any, size: int, run: Pass
) -> tuple[Sums, Sums, Any, list[str]]:
    """Sum the gradients of the layers' parameters and their squares over one batch.

    Returns:
        The sums of gradients, the sums of squares, the target, and the parameters of layers that ran on what all
            samples share.
    """
    gradient: Sums = {}
    square: Sums = {}
    unsplit: list[str] = []
    with recording_calls(layers) as recorder:
        output = run.output(model, batch)
        target = run.target(output, batch, size)
        (run.loss_sum(output, target, size) * run.scale).backward()
    with torch.no_grad():
        for name, layer in layers.items():
            if name in recorder.opaque:
                continue
            calls, prefix = recorder.calls.pop(name, []), f"{name}." if name else ""
            if any(len(call.grad) % size for call in calls):
                if computed_weight(layer) is not None:
                    raise CriterionError(
                        f"layer {name!r} computes its weight and runs on what all samples share, so that it has no "
                        f"gradient per sample; {WAY_OUT}"
                    )
                unsplit += [prefix + parameter for parameter, _ in layer.named_parameters(recurse=False)]
                continue
            for parameter, (first, second) in gradient_moments(layer, calls, size).items():
                gradient[prefix + parameter] = first / run.scale
                square[prefix + parameter] = second / run.scale**2
    return gradient, square, target, unsplit


def _add_bare(
    model: nn.Module, names: list[str], sample: tuple[Any, Any], size: int, run: Pass, gradient: Sums, square: Sums
) -> None:
    """Add the other parameters by one more forward and backward.

    `torch.func.vmap` differentiates it sample by sample.
    """
    parameters = {name: model.get_parameter(name).detach() for name in names}
    dims = mapped(sample, lambda tensor: 0 if tensor.dim() > 0 and len(tensor) == size else None, lambda _: None)

    def loss(values: Sums, sample: tuple[Any, Any]) -> Tensor:
        batch, target = mapped(sample, lambda tensor: tensor[None])
        output = run.output(lambda *args, **kwargs: functional_call(model, values, args, kwargs), batch)
        return run.unchecked_loss_sum(output, target, 1)

    try:
        with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no batching rule
            rows = vmap(grad(loss), in_dims=(None, dims), randomness="same")(parameters, sample)
    except (RuntimeError, NotImplementedError) as error:
        raise CriterionError(
            f"the per-sample gradients of {', '.join(names[:3])} can't be formed with torch.func.vmap: {error}"
        ) from error
    for name, value in rows.items():
        gradient[name], square[name] = value.sum(0), value.square().sum(0)
