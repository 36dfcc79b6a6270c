r"""Record gate gradients: what scaling a channel, wherever it is read, does to the loss or an output of one sample.

A gate \(\gamma_c\) multiplies channel `c` at every layer that reads it. Removing the channel takes the gate from 1 to
0. At 1 the derivative of a quantity \(\ell_n\) of sample `n` is \(v_{n,c} = \sum a_{n,c} \cdot \partial\ell_n /
\partial a_{n,c}\). The sum runs over space (or tokens) and over the layers that read the channel. It is recorded per
reading layer, so that no dependency graph is needed while accumulating. A criterion then adds up the layers of a
coupled group. Weight gradients are never computed, so a pass costs less than a training step.

There are three kinds of reading:
- Convolution and linear layers, and those that `register_layer` was told of, read channels one by one. The definition
  above applies at their inputs.
- Layer and group normalisation also mix channels through mean and variance; see `norms`.
- Attention multiplies query and key channels with no layer in between, so linear layers' outputs are recorded too.
  torch's own attention calls no layers at all; see `attention`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hfp.importance.capture.attention import recording_attention
from hfp.importance.capture.moments import effect, wide
from hfp.importance.capture.multiplied import passed_on
from hfp.importance.capture.norms import NORMS, Norm, channel_dims_of, norm_gate
from hfp.importance.capture.one_sample import follows_samples
from hfp.importance.errors import CriterionError
from hfp.importance.layers import channel_sums, channels_of, reads_along, tensors_of
from hfp.layers import table
from hfp.layers.products import groups_of

GateKey = tuple[str, str]


@dataclass
class GateRecorder:
    """Collects the gate gradients `v` of one batch, one backward pass at a time.

    They are `[samples, channels]` by (module name, "in" or "out"). With `means`, the recorder also collects the sums of
    the gradients at inputs, under "in-sum", and the totals of the inputs themselves.

    A layer that is never called may still have its weight used. With one sample, `v` then follows from the weight: it
    is the sum of `weight * gradient` over what a channel is multiplied with.
    """

    model: nn.Module
    means: bool = False
    size: int = 0
    readers: dict[str, nn.Module] = field(default_factory=dict)
    channels: dict[GateKey, int] = field(default_factory=dict)
    rows: dict[GateKey, Tensor] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    totals: dict[str, tuple[Tensor, int]] = field(default_factory=dict)
    ones: dict[str, set[int]] | None = None
    probing: bool = False
    idle: dict[str, nn.Module] = field(default_factory=dict)
    passes_on: frozenset[str] = frozenset()

    def start(self, size: int) -> None:
        """Forget the last batch; the next one holds `size` samples."""
        self.size, self.channels, self.rows, self.totals, self.refused = size, {}, {}, {}, {}
        for name, layer in self.idle.items():
            self.channels[name, "in"] = channels_of(layer, "in", name)

    def probe(self, forward: Callable[[Any], Any], inputs: Any) -> None:
        """See with a forward pass on one sample how many rows each layer is given, which layers are never called, and
        which parameters are multiplied with nothing.

        Nothing is known of a model that does not run on one sample.
        """
        for layer in self.idle.values():  # it may run in this batch, and be idle again in the next
            for parameter in layer.parameters(recurse=False):
                parameter.requires_grad_(False)
        self.start(1)
        self.passes_on = frozenset()
        self.ones, self.idle, self.probing = {}, {}, True
        try:
            self.passes_on = passed_on(self.model, partial(forward, inputs), inputs)
        except Exception:
            self.ones = None
        self.probing = False
        if self.ones is not None:
            self.idle = {name: layer for name, layer in self.readers.items() if name not in self.ones}
        for layer in self.idle.values():
            for parameter in layer.parameters(recurse=False):
                parameter.requires_grad_(True)

    def splits(self, name: str, x: Tensor) -> bool:
        """Return whether a tensor's first dimension is that of the samples; the reason is kept where it is not."""
        rows = len(x) if x.dim() else 0
        if self.probing:
            assert self.ones is not None
            self.ones.setdefault(name, set()).add(rows)
            return False
        alone = None if self.size == 1 or self.ones is None else self.ones.get(name)
        if x.dim() > 1 and follows_samples(rows, self.size, alone):
            return True
        self.refused[name] = (
            f"layer {name!r} sees {list(x.shape)} for a batch of {self.size} samples: its first dimension is not "
            "that of the samples, so that it has no gradient per sample; put its group into ignored_layers"
        )
        return False

    def _take_idle(self) -> None:
        """Add what the weights of layers say that were never called."""
        for name, layer in self.idle.items():
            parts = list(tensors_of(layer, "in", name))
            gradients = [tensor.grad for _, tensor, _ in parts]
            for parameter in layer.parameters(recurse=False):
                parameter.grad = None
            if (name, "in") in self.rows:
                continue
            if all(gradient is None for gradient in gradients):  # nothing uses it
                if self.means:
                    self.channels[name, "in-sum"] = self.channels[name, "in"]
                    self.totals[name] = torch.zeros(self.channels[name, "in"]), 0
                continue
            if self.size > 1:
                self.refused[name] = f"layer {name!r} is never called, but its weight is used"
            for (_, tensor, slot), gradient in zip(parts, gradients, strict=True):
                if gradient is not None and self.size == 1:
                    entries = effect(wide(tensor.detach()), wide(gradient))
                    self.add((name, "in"), channel_sums(entries, slot, groups_of(layer))[None])

    def add(self, key: GateKey, value: Tensor) -> None:
        """Add one call's `v`; a layer that runs twice in a forward is one place to remove a channel from."""
        self.rows[key] = self.rows[key] + value if key in self.rows else value

    def take(self) -> dict[GateKey, Tensor]:
        """Return `v` of the backward pass just done, which is 0 where the output has no influence.

        Raises:
            CriterionError: a gradient is not finite (the message names the first such layer), or no layer was reached.
        """
        self._take_idle()
        rows, self.rows = self.rows, {}
        if not rows:
            raise CriterionError("no gradient reached a convolution, linear or norm layer: there is nothing to score")
        like = next(iter(rows.values()))
        for (name, side), value in rows.items():
            if not torch.isfinite(value).all():
                raise CriterionError(f"the gradient at the {side}put of layer {name!r} is not finite")
        return {key: rows.get(key, like.new_zeros(self.size, width)) for key, width in self.channels.items()}


@contextmanager
def recording_gates(model: nn.Module, means: bool) -> Iterator[GateRecorder]:
    """Fill the recorder with every forward and backward of the model, while open.

    Parameters need not require gradients.
    """
    recorder = GateRecorder(model, means)
    handles = []
    try:
        for name, module in model.named_modules():
            if isinstance(module, NORMS):
                handles.append(module.register_forward_pre_hook(_make_differentiable))
                handles.append(module.register_forward_hook(_record_statistics(recorder, name)))
                continue
            channel_dim = reads_along(module)
            if channel_dim is not None:
                if _holds_its_weights(module, name):
                    recorder.readers[name] = module
                handles.append(module.register_forward_pre_hook(_record_input(recorder, name, channel_dim)))
            if isinstance(module, nn.Linear):
                handles.append(module.register_forward_hook(_record_output(recorder, name)))
        with recording_attention(model, _alias, partial(_record_tokens, recorder)):
            yield recorder
    finally:
        for handle in handles:
            handle.remove()


def _holds_its_weights(layer: nn.Module, name: str) -> bool:
    """Return whether the table knows the weights with which a layer reads, and they are the layer's parameters."""
    slots = table.slots_of(layer, "in")
    if not slots or isinstance(layer, nn.MultiheadAttention):
        return False
    tensors = [tensor for _, tensor, _ in tensors_of(layer, "in", name)]
    return len(tensors) > 0 and all(isinstance(tensor, nn.Parameter) for tensor in tensors)


def per_sample(values: Tensor, channel_dim: int, size: int) -> Tensor:
    """Sum values of shape `[size * k, channel, ...]` or `[size * k, ..., channel]` into `[size, channel]`."""
    if channel_dim != 1:
        values = values.movedim(channel_dim, -1).unflatten(0, (size, len(values) // size))
        return values.flatten(1, -2).sum(1)
    return values.reshape(size, len(values) // size, values.shape[1], -1).sum((1, 3))


def _inner(x: Tensor, grad: Tensor, channel_dim: int, size: int) -> Tensor:
    """Return `per_sample(effect(x, grad))`, without forming the product where channels come second."""
    if channel_dim != 1 or x.dim() < 3 or x.is_complex():
        return per_sample(effect(x, grad), channel_dim, size)
    return torch.linalg.vecdot(x.flatten(2), grad.flatten(2)).reshape(size, -1, x.shape[1]).sum(1)


def _make_differentiable(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return (_alias(args[0]), *args[1:]) if args else args


def _alias(x: Tensor) -> Tensor:
    """Return the tensor under another identity, whose gradient is that of one reader alone.

    This also works where the original needs no gradient.
    """
    if not torch.is_grad_enabled():
        return x
    return x.view_as(x) if x.requires_grad else x.detach().requires_grad_()


def _record_input(recorder: GateRecorder, name: str, channel_dim: int) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        if not torch.is_grad_enabled() or not args:
            return args  # in a checkpoint's first pass: the layer runs again for its gradient
        x = _alias(args[0])
        if not recorder.splits(name, x):
            return (x, *args[1:])
        _record_product(recorder, (name, "in"), x, channel_dim)
        if recorder.means:
            _record_mean(recorder, name, x, channel_dim)
        return (x, *args[1:])

    return hook


def _record_output(recorder: GateRecorder, name: str) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        if recorder.probing or not isinstance(output, Tensor) or not output.requires_grad:
            return output
        if recorder.splits(name, output):
            _record_product(recorder, (name, "out"), output, -1)
        return output.clone()  # the next layer may write to it in place

    return hook


def _record_tokens(recorder: GateRecorder, name: str, side: str, x: Tensor) -> None:
    if x.requires_grad and recorder.splits(name, x):
        _record_product(recorder, (name, side), x, -1)


def _record_product(recorder: GateRecorder, key: GateKey, x: Tensor, channel_dim: int) -> None:
    recorder.channels[key] = x.shape[channel_dim]
    kept = x.detach()
    x.register_hook(lambda grad: recorder.add(key, _inner(wide(kept), wide(grad), channel_dim, recorder.size)))


def _record_mean(recorder: GateRecorder, name: str, x: Tensor, channel_dim: int) -> None:
    key = name, "in-sum"
    recorder.channels[key] = x.shape[channel_dim]
    flat = wide(x.detach().movedim(channel_dim, -1)).reshape(-1, x.shape[channel_dim])
    total, count = recorder.totals.get(name, (0, 0))
    recorder.totals[name] = total + flat.sum(0), count + len(flat)
    x.register_hook(lambda grad: recorder.add(key, per_sample(wide(grad), channel_dim, recorder.size)))


def _record_statistics(recorder: GateRecorder, name: str) -> Any:
    def hook(module: Norm, args: tuple[Any, ...], output: Tensor) -> Tensor:
        if not args or not isinstance(output, Tensor):
            return output
        x = args[0].detach()
        if not output.requires_grad or not recorder.splits(name, x):
            return output
        dims = channel_dims_of(module, x, output.detach())
        recorder.channels |= {(name, side): x.shape[dim] for side, dim in dims.items()}

        def add(grad: Tensor) -> None:
            gate = norm_gate(module, wide(x), wide(grad), dims["out"])
            for side, dim in dims.items():
                recorder.add((name, side), per_sample(gate, dim, recorder.size))

        output.register_hook(add)
        return output

    return hook
