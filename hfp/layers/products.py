"""Describe convolutions and linear layers, which multiply what they read with one weight."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.instancenorm import _InstanceNorm

from hfp.layers.table import slots_of

PRODUCTS = (nn.Linear, _ConvNd)
"""These layer types multiply their input with a weight."""

_PLAIN = {kind.forward for kind in (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)}
_COUNTS: dict[type | tuple[type, ...], tuple[str | None, str]] = {
    _ConvNd: ("in_channels", "out_channels"),
    nn.Linear: ("in_features", "out_features"),
    (_BatchNorm, _InstanceNorm): ("num_features", "num_features"),
    nn.GroupNorm: ("num_channels", "num_channels"),
    nn.PReLU: ("num_parameters", "num_parameters"),
    (nn.Embedding, nn.EmbeddingBag): (None, "embedding_dim"),
    (nn.RNNBase, nn.RNNCellBase): ("input_size", "hidden_size"),
}


def weight_dims(layer: nn.Module) -> tuple[int, int]:
    """Return the dimensions (output channels, input channels) of a convolution's or linear layer's weight."""
    out, read = (
        next(slot.dim for slot in slots_of(layer, direction) or () if slot.tensor == "weight")
        for direction in ("out", "in")
    )
    return out, read


def channel_dim(layer: nn.Module) -> int:
    """Return the dimension of a convolution's or linear layer's inputs and outputs that counts channels.

    It is 1, or -1 (the last).
    """
    return 1 if isinstance(layer, _ConvNd) else -1


def computed_weight(layer: object) -> Tensor | None:
    """Return the weight of a convolution or linear layer that is computed from others; None if it is not.

    Weight norm and masks compute weights. The result is that of the last forward pass, or a new one.
    """
    if not isinstance(layer, PRODUCTS) or "weight" in layer._parameters:
        return None
    weight = getattr(layer, "weight", None)
    return weight.detach() if isinstance(weight, Tensor) else None


def weight_entries(layer: Any) -> int:
    """Return how many entries the weight of a convolution or linear layer has.

    A weight that is computed is not looked at, which may change what it is computed from.
    """
    stored = layer._parameters.get("weight")
    if stored is not None:
        return int(stored.numel())
    read, written = _COUNTS[_ConvNd if isinstance(layer, _ConvNd) else nn.Linear]
    entries = getattr(layer, str(read)) * getattr(layer, written) * math.prod(getattr(layer, "kernel_size", ()))
    return int(entries) // groups_of(layer)


def owner_of(parameter: str) -> tuple[str, str]:
    """Return the module of a parameter and the parameter's name in it, by its full name.

    A parametrization belongs to the layer that it is of.
    """
    path, _, name = parameter.rpartition(".")
    parts = path.split(".")
    if "parametrizations" in parts:
        path = ".".join(parts[: parts.index("parametrizations")])
    return path, name


def multiplies_inputs(layer: nn.Module) -> bool:
    """Return whether the weight is multiplied once per position of the input, and not of the output.

    This is so for a transposed convolution.
    """
    return isinstance(layer, _ConvTransposeNd)


def groups_of(layer: Any) -> int:
    """Return the number of groups of a convolution, or 1 for a linear layer."""
    return int(getattr(layer, "groups", 1))


def counts_of(layer: nn.Module) -> tuple[str | None, str] | None:
    """Return the attributes in which a layer of PyTorch keeps how many channels it reads and writes.

    The result is None for other types.
    """
    return next((names for kinds, names in _COUNTS.items() if isinstance(layer, kinds)), None)


def is_plain(layer: nn.Module) -> bool:
    """Return whether the layer computes just the product of its weight and what it reads, without transposition."""
    return isinstance(layer, PRODUCTS) and type(layer).forward in _PLAIN


def is_depthwise(layer: object) -> bool:
    """Return whether torch-pruning treats the layer as depthwise, so that it passes channels on unmixed."""
    return isinstance(layer, _ConvNd) and layer.groups == layer.out_channels > 1


def reads_single_channels(layer: object) -> bool:
    """Return whether each output of a convolution reads one input channel, which may have several outputs."""
    return isinstance(layer, _ConvNd) and layer.groups == layer.in_channels > 1
