"""Read the table of layers (`hfp.layers.table`) for criteria.

A layer type that the table lacks is an error here.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from hfp.importance.errors import CriterionError
from hfp.layers import table
from hfp.layers.products import groups_of, is_depthwise
from hfp.layers.table import Row, Slot, Slots


def register_layer(layer_type: type, direction: str, slots: Row, channel_dim: int = 1) -> None:
    """Say where layers of this type (and its subclasses) hold their channels.

    Args:
        layer_type: a subclass of `nn.Module`.
        direction: "out" for the channels that the layer writes, "in" for those that it reads.
        slots: a tuple of `Slot`, or a function that takes the layer and returns one, where the slots depend on the
            layer's options.
        channel_dim: the dimension of the layer's first input that counts the channels. Criteria that follow activations
            read the channels there. It only matters with direction "in".

    Raises:
        CriterionError: the direction is neither "in" nor "out".

    >>> import torch
    >>> from torch import nn
    >>> from hfp.importance import Slot, register_layer
    >>> class Scale(nn.Module):
    ...     def __init__(self, channels):
    ...         super().__init__()
    ...         self.factor = nn.Parameter(torch.ones(channels))
    >>> register_layer(Scale, "out", (Slot("factor", 0),))
    """
    if direction not in ("in", "out"):
        raise CriterionError(f'a direction is "in" or "out", not {direction!r}')
    table.add_row(layer_type, direction, slots, channel_dim)


def reads_along(layer: nn.Module) -> int | None:
    """Return the dimension of its input in which the layer reads channels one by one; None where it does not."""
    return None if is_depthwise(layer) else table.reads_along(layer)  # a depthwise one passes channels on


def slots_of(layer: nn.Module, direction: str, name: str) -> Slots:
    """Return the slots of one layer; error messages call the layer `name`.

    Raises:
        CriterionError: the table has no row for the layer's type.
    """
    found = table.slots_of(layer, direction)
    if found is None:
        kind = type(layer).__name__
        raise CriterionError(
            f"layer {name!r} is a {kind}: the table of layers has no row for its direction {direction!r}; "
            f"call hfp.importance.register_layer({kind}, {direction!r}, (Slot('weight', dim),)) first"
        )
    return found


def tensors_of(layer: nn.Module, direction: str, name: str) -> Iterator[tuple[str, Tensor, Slot]]:
    """Yield (full name, tensor, slot) for every tensor of the layer that exists and holds the channel."""
    for slot in slots_of(layer, direction, name):
        tensor: object = layer
        for part in slot.tensor.split("."):
            tensor = getattr(tensor, part) if part else tensor
        if isinstance(tensor, Tensor):
            yield ".".join(part for part in (name, slot.tensor) if part), tensor, slot


def channels_of(layer: nn.Module, direction: str, name: str) -> int:
    """Return how many channels a layer has in a direction, by the first of its tensors that the table names."""
    _, tensor, slot = next(tensors_of(layer, direction, name))
    return tensor.shape[slot.dim] * (groups_of(layer) if slot.grouped else 1) // slot.blocks


def channel_sums(entries: Tensor, slot: Slot, groups: int = 1) -> Tensor:
    """Sum a tensor of per-entry values into one value per channel, shape `[channels]`."""
    if slot.grouped and groups > 1:
        by_group = entries.unflatten(0, (groups, -1)).movedim(slot.dim + 1, 1)
        return by_group.flatten(2).sum(2).flatten()
    sums = entries.movedim(slot.dim, 0).flatten(1).sum(1) if entries.dim() > 1 else entries
    return sums.view(slot.blocks, -1).sum(0)
