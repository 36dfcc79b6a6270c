"""Full states whose weights are pruned one by one: what of them crosses the wire, and what they cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from hfp.errors import InputError
from hfp.layers.products import PRODUCTS
from hfp.methods.blocks.bits import from_bits, to_bits
from hfp.methods.interface.values import MethodContext, State

Masks = Mapping[str, Tensor]


def full_masks(model: nn.Module) -> dict[str, Tensor]:
    """Return masks in which all weights of convolutions and linear layers are active, in the modules' order.

    A weight that several layers share, or that weight norm computes from others, has no mask, because it is not pruned.
    """
    names = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    return {
        f"{name}.weight".lstrip("."): torch.ones(module.weight.shape, dtype=torch.bool)
        for name, module in model.named_modules()
        if isinstance(module, PRODUCTS) and names[id(module._parameters.get("weight"))] == 1
    }


def mask_bytes(model: nn.Module) -> int:
    """Count the bytes of a client's mask, one for each weight that can be pruned."""
    return sum(mask.numel() for mask in full_masks(model).values())


def check_prunable(method: str, model: nn.Module) -> None:
    """Refuse a model of which no single weight can be pruned.

    Raises:
        InputError: saying so.
    """
    if not full_masks(model):
        raise InputError(
            f"{method} prunes weights of convolutions and linear layers one by one, and each of this model's is shared "
            "between layers or computed from others; use a method that prunes channels"
        )


def density_of(context: MethodContext, density: float | None) -> float:
    """Return the share of the weights that one mask for all clients keeps.

    Args:
        context: what stays the same over the run.
        density: the share that a person asked for; None is the mean of what the clients' submodels would hold.
    """
    if density is not None:
        return density
    return sum((1 - client.ratio) ** 2 for client in context.clients) / len(context.clients)


def masks_to_bits(masks: Masks) -> Tensor:
    """Pack all masks into one tensor of bits, one per weight."""
    return to_bits(torch.cat([mask.reshape(-1) for mask in masks.values()]))


def masks_from_bits(bits: Tensor, model: nn.Module) -> dict[str, Tensor]:
    """Unpack the masks of `model`'s weights that `masks_to_bits` was given."""
    like = full_masks(model)
    parts = from_bits(bits, (count(like),)).split([mask.numel() for mask in like.values()])
    return {name: part.reshape(mask.shape) for (name, mask), part in zip(like.items(), parts, strict=True)}


def gather(state: State, masks: Masks) -> dict[str, Tensor]:
    """Return the state with every masked tensor replaced by the row of its active values."""
    return {name: value[masks[name].to(value.device)] if name in masks else value for name, value in state.items()}


def scatter(values: State, masks: Masks, model: nn.Module) -> dict[str, Tensor]:
    """Return the full state of `model` that `gather` was given, zero where a weight isn't active.

    Raises:
        InputError: a row has more or fewer values than its mask has active weights.
    """
    for name, mask in masks.items():
        if tuple(values[name].shape) != (int(mask.sum()),):
            raise InputError(f"{name} must have {int(mask.sum())} active values; found {list(values[name].shape)}")
    return {
        name: torch.zeros(full.shape, dtype=full.dtype, device=values[name].device).masked_scatter(
            masks[name].to(values[name].device), values[name]
        )
        if name in masks
        else values[name]
        for name, full in model.state_dict().items()
    }


def cleared(state: State, masks: Masks) -> dict[str, Tensor]:
    """Return the state with zeros where a weight isn't active."""
    return {name: value * masks[name].to(value) if name in masks else value for name, value in state.items()}


def count(masks: Masks) -> int:
    """Count the active weights."""
    return sum(int(mask.sum()) for mask in masks.values())


def saved_macs(masks: Masks, uses: Mapping[str, int]) -> int:
    """Count the multiply-accumulates that the weights which aren't active would take part in."""
    return sum(uses[name] * int((~mask).sum()) for name, mask in masks.items())
