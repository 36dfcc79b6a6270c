"""The table of layers says which tensors of a layer hold a channel, and along which dimension.

A row maps (layer type, direction) to `Slot`s. Direction "out" is the channel as the layer writes it. For layers with as
many inputs as outputs, such as norms and depthwise convolutions, it is also the channel as the layer reads it.
Direction "in" is the channel as the layer reads it. Everything that walks over a layer's weights reads this table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.instancenorm import _InstanceNorm


@dataclass(frozen=True)
class Slot:
    """One tensor of a layer that holds channels.

    Args:
        tensor: the attribute's path inside the layer, such as "weight" or "out_proj.bias"; "" for a bare parameter.
        dim: the dimension along which a channel is one index.
        blocks: how many copies of the channels the dimension holds, one after the other (3 for q, k and v in one
            matrix).
        grouped: whether the dimension counts the channels of one convolution group; the groups then lie along dimension
            0.

    >>> from hfp.importance import Slot
    >>> Slot("weight", 0)
    Slot(tensor='weight', dim=0, blocks=1, grouped=False)
    """

    tensor: str
    dim: int
    blocks: int = 1
    grouped: bool = False


Slots = tuple[Slot, ...]
Row = Slots | Callable[[nn.Module], Slots]
"""A row is the slots of a layer type, or a function from a layer to them where they depend on the layer's options."""
_TABLE: dict[tuple[type | str, str], Row] = {}
_READS_ALONG: dict[type | str, int] = {}


def add_row(layer_type: type | str, direction: str, row: Row, channel_dim: int = 1) -> None:
    """Say where layers of this type (and its subclasses) hold their channels.

    Args:
        layer_type: a subclass of `nn.Module`, or its module and name ("package.module.Class") where the package need
            not be there.
        direction: "out" or "in".
        row: the slots.
        channel_dim: with direction "in", the dimension of the layer's first input that counts the channels.
    """
    _TABLE[layer_type, direction] = row
    if direction == "in":
        _READS_ALONG[layer_type] = channel_dim


def slots_of(layer: nn.Module, direction: str) -> Slots | None:
    """Return the slots of a layer; None where the table has no row for its type."""
    row = next((_TABLE[kind, direction] for kind in _kinds(layer) if (kind, direction) in _TABLE), None)
    return row(layer) if callable(row) else row


def reads_along(layer: nn.Module) -> int | None:
    """Return the dimension of its input in which a layer reads channels one by one; None if the table has none."""
    return next((_READS_ALONG[kind] for kind in _kinds(layer) if kind in _READS_ALONG), None)


def _kinds(layer: nn.Module) -> Iterator[type | str]:
    """Yield the layer's type and those that it is derived from, each also by its module and name."""
    for kind in type(layer).__mro__:
        yield kind
        yield f"{kind.__module__}.{kind.__qualname__}"


def direction_of(layer: nn.Module, tensor: str, dim: int, rank: int) -> str | None:
    """Return the direction in which a layer's row names a dimension of one of its tensors; None where no row does.

    Args:
        layer: the layer.
        tensor: the tensor's name inside it.
        dim: the dimension.
        rank: how many dimensions the tensor has.
    """
    for direction in ("in", "out"):
        slots = slots_of(layer, direction) or ()
        if any(slot.tensor == tensor and slot.dim % rank == dim % rank for slot in slots):
            return direction
    return None


def _vector(layer: nn.Module) -> Slots:
    return (Slot("weight", 0), Slot("bias", 0))


def _prelu(layer: nn.Module) -> Slots:
    shared = layer.num_parameters == 1
    return () if shared else (Slot("weight", 0),)


def _fill() -> None:
    add_row(_ConvNd, "out", (Slot("weight", 0), Slot("bias", 0)))
    add_row(_ConvNd, "in", (Slot("weight", 1, grouped=True),))
    add_row(_ConvTransposeNd, "out", (Slot("weight", 1, grouped=True), Slot("bias", 0)))
    add_row(_ConvTransposeNd, "in", (Slot("weight", 0),))
    add_row(nn.Linear, "out", (Slot("weight", 0), Slot("bias", 0)))
    add_row(nn.Linear, "in", (Slot("weight", 1),), channel_dim=-1)
    for norm in (_BatchNorm, nn.GroupNorm, _InstanceNorm):
        add_row(norm, "out", _vector)
    add_row(nn.LayerNorm, "out", (Slot("weight", -1), Slot("bias", -1)))
    add_row(nn.RMSNorm, "out", (Slot("weight", -1),))
    add_row(nn.PReLU, "out", _prelu)
    add_row(nn.Embedding, "out", (Slot("weight", 1),))
    add_row("transformers.pytorch_utils.Conv1D", "out", (Slot("weight", 1), Slot("bias", 0)))
    add_row("transformers.pytorch_utils.Conv1D", "in", (Slot("weight", 0),), channel_dim=-1)
    add_row(
        nn.MultiheadAttention,
        "out",
        (
            *(Slot(f"{part}_proj_weight", 0) for part in "qkv"),
            Slot("in_proj_weight", 0, blocks=3),
            Slot("in_proj_weight", 1),
            Slot("in_proj_bias", 0, blocks=3),
            Slot("bias_k", 2),
            Slot("bias_v", 2),
            Slot("out_proj.weight", 0),
            Slot("out_proj.weight", 1),
            Slot("out_proj.bias", 0),
        ),
    )


_fill()
