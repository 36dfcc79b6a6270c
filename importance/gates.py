r"""Gate gradients: what scaling a channel, wherever it is read, does to the loss of one sample.

A gate \(\gamma_c\) multiplies channel `c` at every layer that reads it; removing the channel takes it from 1 to 0. At 1
its derivative for sample `n` is \(v_{n,c} = \sum a_{n,c} \cdot \partial\ell_n / \partial a_{n,c}\), the sum running
over space (or tokens) and over the layers that read the channel. Recorded here per reading layer, so that no dependency
graph is needed while accumulating; a criterion adds the layers of a coupled group up. Weight gradients are never
computed, so a pass costs less than a training step.

Three kinds of reading:
- convolution and linear layers read channels one by one: the definition above, at their inputs;
- layer and group normalisation also mix channels through mean and variance. A channel with weight \(\gamma\) in those
  statistics has \(d\mu/d\gamma_c = (\bar x_c - \mu)/C\) and \(d\sigma^2/d\gamma_c = (\overline{(x_c - \mu)^2} -
  \sigma^2)/C\), and the chain rule gives its `v`;
- attention multiplies query and key channels without a layer in between, so linear layers' outputs are recorded as
  well.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from hfp.importance.errors import CriterionError
from hfp.importance.layers import is_depthwise

Rows = dict[tuple[str, str], Tensor]


@dataclass
class GateRecorder:
    """Collects `v` of one batch: (module name, "in" or "out") to `[samples, channels]`."""

    size: int = 0
    rows: Rows = field(default_factory=dict)

    def start(self, size: int) -> None:
        """Forget the last batch; the next one holds `size` samples."""
        self.size, self.rows = size, {}

    def add(self, name: str, side: str, value: Tensor) -> None:
        """Add one call's `v`: a layer that runs twice in a forward is one place to remove a channel from."""
        key = name, side
        self.rows[key] = self.rows[key] + value if key in self.rows else value

    def check(self) -> None:
        """Refuse gradients that aren't finite.

        Raises:
            CriterionError: naming the first layer with such a gradient.
        """
        for (name, side), value in self.rows.items():
            if not torch.isfinite(value).all():
                raise CriterionError(f"the gradient at the {side}put of layer {name!r} is not finite")


@contextmanager
def recording_gates(model: nn.Module) -> Iterator[GateRecorder]:
    """While open, every forward and backward of the model fills the recorder. Parameters need not require gradients."""
    recorder = GateRecorder()
    handles = []
    try:
        for name, module in model.named_modules():
            if isinstance(module, (nn.LayerNorm, nn.GroupNorm)):
                handles.append(module.register_forward_pre_hook(_differentiable_input))
                handles.append(module.register_forward_hook(_record_statistics(recorder, name)))
            elif isinstance(module, (_ConvNd, nn.Linear)) and not is_depthwise(module):
                handles.append(module.register_forward_pre_hook(_record_input(recorder, name)))
                if isinstance(module, nn.Linear):
                    handles.append(module.register_forward_hook(_record_output(recorder, name)))
        yield recorder
    finally:
        for handle in handles:
            handle.remove()


def _differentiable_input(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return (_alias(args[0]), *args[1:])


def _alias(x: Tensor) -> Tensor:
    """A tensor whose gradient is that of one reader alone, also where the original needs none."""
    return x.view_as(x) if x.requires_grad else x.detach().requires_grad_()


def _record_input(recorder: GateRecorder, name: str) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        x = _alias(args[0])
        _register(recorder, name, "in", x, -1 if isinstance(module, nn.Linear) else 1)
        return (x, *args[1:])

    return hook


def _record_output(recorder: GateRecorder, name: str) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        output = output.view_as(output)
        _register(recorder, name, "out", output, -1)
        return output

    return hook


def _register(recorder: GateRecorder, name: str, side: str, x: Tensor, channel_dim: int) -> None:
    recorder.add(name, side, torch.zeros((), device=x.device).expand(recorder.size, x.shape[channel_dim]))
    kept = x.detach()

    def on_gradient(grad: Tensor) -> None:
        recorder.add(name, side, per_sample(_wide(kept) * _wide(grad), channel_dim, recorder.size, name))

    x.register_hook(on_gradient)


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def per_sample(values: Tensor, channel_dim: int, size: int, name: str) -> Tensor:
    """Sum values of shape `[size * k, channel, ...]` or `[size * k, ..., channel]` into `[size, channel]`.

    Raises:
        CriterionError: when the leading dimension isn't a multiple of the batch size.
    """
    channels_last = values if channel_dim == -1 else values.movedim(channel_dim, -1)
    if values.dim() < 2 or len(values) % size:
        raise CriterionError(
            f"layer {name!r} sees {list(values.shape)} for a batch of {size} samples: "
            "its first dimension must be that of the samples"
        )
    return channels_last.reshape(size, -1, channels_last.shape[-1]).sum(1)


def _record_statistics(recorder: GateRecorder, name: str) -> Any:
    def hook(module: nn.LayerNorm | nn.GroupNorm, args: tuple[Any, ...], output: Tensor) -> Tensor:
        output = output.view_as(output)
        x = args[0].detach()
        channel_dim = norm_channel_dim(module, x, output)
        recorder.add(name, "out", torch.zeros((), device=x.device).expand(recorder.size, x.shape[channel_dim]))

        def on_gradient(grad: Tensor) -> None:
            if isinstance(module, nn.GroupNorm):
                gate = group_norm_gate(module, _wide(x), _wide(grad))
            else:
                gate = layer_norm_gate(module, _wide(x.movedim(channel_dim, -1)), _wide(grad.movedim(channel_dim, -1)))
                gate = gate.movedim(-1, channel_dim)
            recorder.add(name, "out", per_sample(gate, channel_dim, recorder.size, name))

        output.register_hook(on_gradient)
        return output

    return hook


def norm_channel_dim(module: nn.LayerNorm | nn.GroupNorm, x: Tensor, output: Tensor) -> int:
    """Where a norm's channels are: 1 for a group norm and channels-first kinds of layer norm, else last."""
    if isinstance(module, nn.GroupNorm):
        return 1
    channels = module.normalized_shape[-1]
    if x.shape[-1] != channels:
        return 1
    if x.dim() < 4 or x.shape[1] != channels or type(module).forward is nn.LayerNorm.forward:
        return -1
    last = nn.functional.layer_norm(x, module.normalized_shape, module.weight, module.bias, module.eps)
    return -1 if torch.allclose(last, output, atol=1e-3) else 1


def layer_norm_gate(module: nn.LayerNorm, x: Tensor, grad: Tensor) -> Tensor:
    """`v` before summing over tokens, `[..., channel]`, of a channel's share in a layer norm's mean and variance."""
    dims = tuple(range(-len(module.normalized_shape), 0))
    weighted = grad if module.weight is None else grad * module.weight.detach()
    normal, share = _normalised(x, dims, module.eps)
    scale = weighted.sum(dims, keepdim=True), (weighted * normal).sum(dims, keepdim=True)
    return (
        -(scale[0] * normal + scale[1] * (normal.square() - share) / 2) / normal[(0,) * (x.dim() - len(dims))].numel()
    )


def group_norm_gate(module: nn.GroupNorm, x: Tensor, grad: Tensor) -> Tensor:
    """`v` before summing over space, `[batch, channel, positions]`, of a channel's share in a group norm."""
    weighted = grad.flatten(2) if module.weight is None else grad.flatten(2) * module.weight.detach()[:, None]
    weighted = weighted.unflatten(1, (module.num_groups, -1))
    normal, share = _normalised(x.flatten(2).unflatten(1, (module.num_groups, -1)), (2, 3), module.eps)
    scale = weighted.sum((2, 3), keepdim=True), (weighted * normal).sum((2, 3), keepdim=True)
    gate = -(scale[0] * normal + scale[1] * (normal.square() - share) / 2) / normal[0, 0].numel()
    return gate.flatten(1, 2)


def _normalised(x: Tensor, dims: tuple[int, ...], eps: float) -> tuple[Tensor, Tensor]:
    variance, mean = torch.var_mean(x, dims, correction=0, keepdim=True)
    return (x - mean) * (variance + eps).rsqrt(), variance / (variance + eps)
