r"""Compute the per-sample weight gradients of one layer from what went in and the gradient of what came out.

For a layer that ran on sample `n` with input \(x_n\) and output gradient \(g_n\), the gradient of that sample is \(G_n
= \sum g_n x_n^T\), summed over positions. The results are \(\sum_n G_n^2\), entry by entry, and \(\sum_n G_n\). Linear
and 2-D convolution layers form \(G_n\) as one batched matrix product. Any other layer is differentiated for all samples
at once by `torch.func`. There is no loop over samples, and no backward pass beyond the one that gave \(g_n\).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap

from hfp.importance.capture.moments import wide
from hfp.layers.patches import columns
from hfp.layers.products import computed_weight, is_plain

CHUNK_BYTES = 1 << 26  # gradients are formed for as many samples at a time as fit into these bytes


@dataclass(frozen=True)
class LayerCall:
    """One call of a layer.

    Args:
        args: its arguments. Tensors with one row per row of `grad` hold samples.
        grad: the gradient of its output, with `samples * k` rows and the samples first.
    """

    args: tuple[Any, ...]
    grad: Tensor

    def part(self, start: int, stop: int, samples: int) -> LayerCall:
        """Return the same call for samples `start` to `stop` alone."""
        rows = len(self.grad)

        def cut(value: Any) -> Any:
            batched = isinstance(value, Tensor) and value.dim() > 0 and len(value) == rows
            return value[start * rows // samples : stop * rows // samples] if batched else value

        return LayerCall(tuple(map(cut, self.args)), cut(self.grad))

    def to(self, dtype: torch.dtype) -> LayerCall:
        """Return the same call with every floating-point tensor in one type.

        Mixed precision may have made several types of them.
        """

        def cast_floating(value: Any) -> Any:
            return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

        return LayerCall(tuple(map(cast_floating, self.args)), self.grad.to(dtype))


def gradient_moments(module: nn.Module, calls: list[LayerCall], samples: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Sum the gradient and its square over samples, as `(sum, square)` for each of the layer's own parameters.

    A layer that ran several times in one forward pass has one gradient per sample: the sum over its calls.
    """
    parameters = weights_of(module)
    size = max(parameter.numel() * parameter.element_size() for parameter in parameters.values())
    sums = {name: (torch.zeros_like(wide(p)), torch.zeros_like(wide(p))) for name, p in parameters.items()}
    if size == 0:
        return sums
    chunk = max(1, min(samples, CHUNK_BYTES // size))
    calls = [call.to(next(iter(parameters.values())).dtype) for call in calls]
    for start in range(0, samples, chunk):
        stop = min(start + chunk, samples)
        for name, gradients in _summed_over_calls(module, calls, start, stop, samples).items():
            sums[name][0].add_(wide(gradients).sum(0))
            sums[name][1].add_(wide(gradients).square().sum(0))
    return sums


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of a layer that have gradients.

    They are its parameters, or its weight and bias where the weight is computed.
    """
    weight = computed_weight(module)
    if weight is None:
        return dict(module.named_parameters(recurse=False))
    bias = getattr(module, "bias", None)
    return {"weight": weight} if bias is None else {"weight": weight, "bias": bias.detach()}


def _summed_over_calls(
    module: nn.Module, calls: list[LayerCall], start: int, stop: int, samples: int
) -> dict[str, Tensor]:
    total: dict[str, Tensor] = {}
    for call in calls:
        for name, value in per_sample_gradients(module, call.part(start, stop, samples), stop - start).items():
            total[name] = total[name] + value if name in total else value
    return total


def per_sample_gradients(module: nn.Module, call: LayerCall, samples: int) -> dict[str, Tensor]:
    """Return the gradients of the layer's own parameters in one call, each `[samples, *shape]`."""
    if isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward:
        return _linear(module, call, samples)
    if isinstance(module, nn.Conv2d) and type(module).forward is nn.Conv2d.forward and _plain_padding(module):
        return _convolution(module, call, samples)
    if is_plain(module) and computed_weight(module) is not None:
        return _convolution(module, call, samples)
    return _any_layer(module, call, samples)


def _linear(module: nn.Linear, call: LayerCall, samples: int) -> dict[str, Tensor]:
    x, grad = (value.reshape(samples, -1, value.shape[-1]) for value in (call.args[0], call.grad))
    gradients = {"weight": grad.transpose(1, 2) @ x}
    return gradients if module.bias is None else {**gradients, "bias": grad.sum(1)}


def _convolution(module: Any, call: LayerCall, samples: int) -> dict[str, Tensor]:
    x, grad = call.args[0], call.grad.flatten(2)
    if (
        isinstance(module, nn.Conv2d)
        and module.kernel_size == (1, 1)
        and module.stride == (1, 1)
        and module.padding == (0, 0)
    ):
        patches = x.flatten(2)
    else:
        patches = columns(module, x)
    patches = patches.unflatten(1, (module.groups, -1))
    weight = grad.unflatten(1, (module.groups, -1)) @ patches.transpose(2, 3)
    weight = weight.reshape(samples, -1, *module.weight.shape).sum(1)
    if module.bias is None:
        return {"weight": weight}
    return {"weight": weight, "bias": grad.reshape(samples, -1, *grad.shape[1:]).sum((1, 3))}


def _plain_padding(module: nn.Conv2d) -> bool:
    return module.padding_mode == "zeros" and not isinstance(module.padding, str)


def _any_layer(module: nn.Module, call: LayerCall, samples: int) -> dict[str, Tensor]:
    parameters = {name: p.detach() for name, p in module.named_parameters(recurse=False)}
    rows = len(call.grad)
    batched = [isinstance(value, Tensor) and value.dim() > 0 and len(value) == rows for value in call.args]
    split = [v.reshape(samples, -1, *v.shape[1:]) if b else v for v, b in zip(call.args, batched, strict=True)]
    grad = call.grad.reshape(samples, -1, *call.grad.shape[1:])

    def pull_back(grad: Tensor, *args: Any) -> dict[str, Tensor]:
        return vjp(lambda values: functional_call(module, values, args), parameters)[1](grad)[0]

    return vmap(pull_back, in_dims=(0, *(0 if b else None for b in batched)))(grad, *split)
