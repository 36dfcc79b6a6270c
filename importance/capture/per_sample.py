"""Add up the per-sample gradients of every parameter of a model, and their squares, over batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from hfp.importance.capture.batches import Pass, mapped
from hfp.importance.capture.calls import layers_and_bare, recording_calls
from hfp.importance.capture.moments import WAY_OUT, GradientMoments, check_finite, wide
from hfp.importance.capture.one_sample import follows_samples, one_sample, rows_of_one
from hfp.importance.capture.squares import LayerCall, gradient_moments
from hfp.importance.capture.state import differentiable, untouched
from hfp.importance.errors import CriterionError
from hfp.layers.products import computed_weight

Sums = dict[str, Tensor]


def gradient_moments_of(model: nn.Module, batches: Iterable[Any], run: Pass) -> GradientMoments:
    """Sum the gradient and its square over samples, in one pass over the batches.

    Raises:
        CriterionError: a gradient is not finite or cannot be formed per sample, or `Pass` refuses a batch or the loss.
    """
    total: GradientMoments | None = None
    with untouched(model, parameters_require_grad=False):
        layers, bare = layers_and_bare(model)
        for batch, size in run.batches(batches, model):
            found = _of_layers(model, layers, batch, size, run)
            if bare or found.unsplit:
                _add_others(model, bare + found.unsplit, found, batch, size, run)
            moments = GradientMoments(size, check_finite(found.gradient), found.square)
            total = moments if total is None else total.plus(moments)
    assert total is not None
    return total


@dataclass
class _Found:
    """What one backward pass over a batch gave.

    Args:
        target: what the loss compared the output with.
        gradient: the sums of the gradients over samples, by the parameter's name.
        square: the sums of their squares.
        unsplit: the parameters whose layers' calls do not show the gradients of single samples.
        varying: whether what a layer runs on depends on the values of the inputs.
    """

    target: Any
    gradient: Sums = field(default_factory=dict)
    square: Sums = field(default_factory=dict)
    unsplit: list[str] = field(default_factory=list)
    varying: bool = False


def _of_layers(model: nn.Module, layers: Mapping[str, nn.Module], batch: Any, size: int, run: Pass) -> _Found:
    """Sum the gradients of the layers' parameters and their squares over one batch."""
    ones = rows_of_one(model, layers, run, batch, size)
    idle = {name: layer for name, layer in layers.items() if ones and name not in ones}
    with (
        recording_calls(layers) as recorder,
        _differentiated([p for layer in idle.values() for p in layer.parameters()]),
    ):
        output = run.output(model, batch)
        found = _Found(run.target(output, batch, size))
        (run.loss_sum(output, found.target, size) * run.scale).backward()
        used = {name for name, layer in idle.items() if any(p.grad is not None for p in layer.parameters())}
    found.varying = bool(idle)
    with torch.no_grad():
        for name, layer in layers.items():
            calls, prefix = recorder.calls.pop(name, []), f"{name}." if name else ""
            shown = all(_shows_samples(call, size, ones.get(name)) for call in calls)
            if not shown or name in recorder.opaque or (name in used and not calls):
                if computed_weight(layer) is not None:
                    raise CriterionError(
                        f"layer {name!r} computes its weight and runs on what all samples share, so that it has no "
                        f"gradient per sample; {WAY_OUT}"
                    )
                found.varying |= not shown and any(len(call.grad) not in ones.get(name, ()) for call in calls)
                found.unsplit += [prefix + parameter for parameter, _ in layer.named_parameters(recurse=False)]
                continue
            for parameter, (first, second) in gradient_moments(layer, calls, size).items():
                found.gradient[prefix + parameter] = first / run.scale
                found.square[prefix + parameter] = second / run.scale**2
    return found


def _shows_samples(call: LayerCall, size: int, rows_of_one: set[int] | None) -> bool:
    """Return whether a call's rows are those of the samples, in what enters the layer and in what leaves it."""
    rows = len(call.grad)
    entered = any(isinstance(value, Tensor) and value.dim() > 0 and len(value) == rows for value in call.args)
    return entered and follows_samples(rows, size, rows_of_one)


@contextmanager
def _differentiated(parameters: list[nn.Parameter]) -> Iterator[None]:
    """Let parameters have gradients, while open."""
    for parameter in parameters:
        parameter.requires_grad_(differentiable(parameter))
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(False)
            parameter.grad = None


def _add_others(model: nn.Module, names: list[str], found: _Found, batch: Any, size: int, run: Pass) -> None:
    """Add other parameters: by one more pass that is differentiated sample by sample, or by a pass for each sample."""
    whole = [name for name in names if not differentiable(model.get_parameter(name))]
    _add_zeros(model, whole, found)
    names = [name for name in names if name not in whole]
    if not names:
        return
    rows = None if found.varying else _by_vmap(model, names, (batch, found.target), size, run)
    if rows is not None:
        for name, value in rows.items():
            found.gradient[name] = wide(value).sum(0) / run.scale
            found.square[name] = wide(value).square().sum(0) / run.scale**2
        return
    _add_zeros(model, names, found)
    try:
        for gradients in _one_by_one(model, names, (batch, found.target), size, run):
            for name, value in gradients.items():
                found.gradient[name] += value
                found.square[name] += value.square()
    except RuntimeError as error:
        raise CriterionError(
            f"the per-sample gradients of {', '.join(map(repr, names[:3]))} can't be formed, because the model fails "
            f"on one sample alone ({error}); take group-fisher"
        ) from error


def _add_zeros(model: nn.Module, names: Iterable[str], found: _Found) -> None:
    for name in names:
        found.gradient[name], found.square[name] = (torch.zeros_like(wide(model.get_parameter(name))) for _ in range(2))


def _by_vmap(
    model: nn.Module, names: list[str], sample: tuple[Any, Any], size: int, run: Pass
) -> dict[str, Tensor] | None:
    """Return the gradients `[samples, *shape]`, times `run.scale`, by one pass; None where `torch.func` can't."""
    parameters = {name: model.get_parameter(name).detach() for name in names}
    dims = mapped(sample, lambda tensor: 0 if tensor.dim() > 0 and len(tensor) == size else None, lambda _: None)

    def loss(values: Sums, sample: tuple[Any, Any]) -> Tensor:
        batch, target = mapped(sample, lambda tensor: tensor[None])
        output = run.output(lambda *args, **kwargs: functional_call(model, values, args, kwargs), batch)
        return run.unchecked_loss_sum(output, target, 1) * run.scale

    try:
        with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no batching rule
            return vmap(grad(loss), in_dims=(None, dims), randomness="same")(parameters, sample)
    except Exception:
        return None


def _one_by_one(
    model: nn.Module, names: list[str], sample: tuple[Any, Any], size: int, run: Pass
) -> Iterator[dict[str, Tensor]]:
    """Yield the gradients of each sample, by a forward and backward of its own."""
    batch, target = sample
    parameters = [model.get_parameter(name) for name in names]
    for place in range(size):
        one = one_sample(batch, place, size)
        with _differentiated(parameters):
            output = run.output(model, one)
            its = one if target is batch else one_sample(target, place, size, depth=1)
            loss = run.loss_sum(output, its, 1) * run.scale
            gradients = torch.autograd.grad(loss, parameters, materialize_grads=True, allow_unused=True)
        yield {name: wide(value) / run.scale for name, value in zip(names, gradients, strict=True)}
