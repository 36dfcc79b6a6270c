"""The table: which tensors of a layer hold a channel, and along which dimension.

A row maps (layer type, direction) to `Slot`s. Direction "out" is the channel as the layer writes it (and, for layers
with as many inputs as outputs, such as norms and depthwise convolutions, as it reads it); "in" is the channel as the
layer reads it. Everything that walks over a layer's weights reads this table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.instancenorm import _InstanceNorm

from hfp.importance.errors import CriterionError


@dataclass(frozen=True)
class Slot:
    """One tensor of a layer that holds channels.

    tensor: attribute path inside the layer, such as "weight" or "out_proj.bias"; "" for a bare parameter.
    dim: the dimension along which a channel is one index.
    blocks: the dimension is `blocks` copies of the channels, one after the other (q, k and v in one matrix).
    grouped: the dimension counts the channels of one convolution group; the groups lie along dimension 0.
    """

    tensor: str
    dim: int
    blocks: int = 1
    grouped: bool = False


Slots = tuple[Slot, ...]
_TABLE: dict[tuple[type, str], Slots | Callable[[nn.Module], Slots]] = {}
_READS_ALONG: dict[type, int] = {}


def register_layer(
    layer_type: type, direction: str, slots: Slots | Callable[[nn.Module], Slots], channel_dim: int = 1
) -> None:
    """Say where layers of this type (and its subclasses) hold their channels.

    `slots` is a tuple of `Slot`, or a function from the layer to one where that depends on the layer's options.
    channel_dim: with direction "in", the dimension of the layer's first input that counts the channels; criteria that
    follow activations read them there.

    Raises:
        CriterionError: when the direction is neither "in" nor "out".
    """
    if direction not in ("in", "out"):
        raise CriterionError(f'a direction is "in" or "out", not {direction!r}')
    _TABLE[layer_type, direction] = slots
    if direction == "in":
        _READS_ALONG[layer_type] = channel_dim


def reads_along(layer: nn.Module) -> int | None:
    """The dimension of its input in which the layer reads channels one by one; None where it doesn't."""
    if is_depthwise(layer):
        return None  # it passes channels on
    return next((_READS_ALONG[cls] for cls in type(layer).__mro__ if cls in _READS_ALONG), None)


def registered_slot(layer: nn.Module, tensor: str, dim: int, rank: int) -> str | None:
    """The direction in which a layer type's row names this tensor and dimension; None where no row does."""
    for direction in ("in", "out"):
        if any((cls, direction) in _TABLE for cls in type(layer).__mro__) and any(
            slot.tensor == tensor and slot.dim % rank == dim % rank for slot in slots_of(layer, direction, tensor)
        ):
            return direction
    return None


def slots_of(layer: nn.Module, direction: str, name: str) -> Slots:
    """The slots of one layer; `name` is for the message.

    Raises:
        CriterionError: when the table has no row for the layer's type.
    """
    for cls in type(layer).__mro__:
        row = _TABLE.get((cls, direction))
        if row is not None:
            return row(layer) if callable(row) else row
    raise CriterionError(
        f"layer {name!r} is a {type(layer).__name__}: the table of layers has no row for its direction {direction!r}; "
        f"call hfp.importance.register_layer({type(layer).__name__}, {direction!r}, (Slot('weight', dim),)) first"
    )


def tensors_of(layer: nn.Module, direction: str, name: str) -> Iterator[tuple[str, Tensor, Slot]]:
    """(full name, tensor, slot) for every tensor of the layer that exists and holds the channel."""
    for slot in slots_of(layer, direction, name):
        tensor: object = layer
        for part in slot.tensor.split("."):
            tensor = getattr(tensor, part) if part else tensor
        if isinstance(tensor, Tensor):
            yield ".".join(part for part in (name, slot.tensor) if part), tensor, slot


def channels_of(layer: nn.Module, direction: str, name: str) -> int:
    """How many channels a layer has in a direction, by the first of its tensors that the table names."""
    _, tensor, slot = next(tensors_of(layer, direction, name))
    return tensor.shape[slot.dim] * (getattr(layer, "groups", 1) if slot.grouped else 1) // slot.blocks


def channel_sums(entries: Tensor, slot: Slot, groups: int = 1) -> Tensor:
    """Sum a tensor of per-entry values into one value per channel, shape `[channels]`."""
    if slot.grouped and groups > 1:
        by_group = entries.unflatten(0, (groups, -1)).movedim(slot.dim + 1, 1)
        return by_group.flatten(2).sum(2).flatten()
    sums = entries.movedim(slot.dim, 0).flatten(1).sum(1) if entries.dim() > 1 else entries
    return sums.view(slot.blocks, -1).sum(0)


def is_depthwise(layer: object) -> bool:
    """Whether torch-pruning treats the layer as depthwise: it passes channels on, it doesn't mix them."""
    return isinstance(layer, _ConvNd) and layer.groups == layer.out_channels > 1


def _vector(layer: nn.Module) -> Slots:
    return (Slot("weight", 0), Slot("bias", 0))


def _prelu(layer: nn.Module) -> Slots:
    shared = layer.num_parameters == 1
    return () if shared else (Slot("weight", 0),)


def _register_all() -> None:
    register_layer(_ConvNd, "out", (Slot("weight", 0), Slot("bias", 0)))
    register_layer(_ConvNd, "in", (Slot("weight", 1, grouped=True),))
    register_layer(_ConvTransposeNd, "out", (Slot("weight", 1, grouped=True), Slot("bias", 0)))
    register_layer(_ConvTransposeNd, "in", (Slot("weight", 0),))
    register_layer(nn.Linear, "out", (Slot("weight", 0), Slot("bias", 0)))
    register_layer(nn.Linear, "in", (Slot("weight", 1),), channel_dim=-1)
    for norm in (_BatchNorm, nn.GroupNorm, _InstanceNorm):
        register_layer(norm, "out", _vector)
    register_layer(nn.LayerNorm, "out", (Slot("weight", -1), Slot("bias", -1)))
    register_layer(nn.RMSNorm, "out", (Slot("weight", -1),))
    register_layer(nn.PReLU, "out", _prelu)
    register_layer(nn.Embedding, "out", (Slot("weight", 1),))
    register_layer(
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


_register_all()
