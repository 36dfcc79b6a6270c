"""What a pruning did to every layer, as plain values."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from torch import nn
from torch.nn.utils import parametrize

from hfp.errors import listed
from hfp.layers.products import PRODUCTS, counts_of, weight_dims
from hfp.reconstruct import IndexMap


@dataclass(frozen=True)
class LayerReport:
    """One layer that has parameters.

    Args:
        name: the module's name in the model.
        kind: its class.
        before, after: how many outputs it has; of a norm or another layer, how many channels.
        inputs: how many channels it reads, before and after; None for a layer of which that isn't known.
        parameters: how many there are, before and after.
        reason: why it keeps all its outputs; None if it lost some.
    """

    name: str
    kind: str
    before: int
    after: int
    inputs: tuple[int, int] | None
    parameters: tuple[int, int]
    reason: str | None


def layer_reports(
    model: nn.Module, index_map: IndexMap, reason: Callable[[str, int], str | None] | None = None
) -> tuple[LayerReport, ...]:
    """Every layer of a full model that has parameters, with what a map keeps of it.

    Args:
        model: the full model.
        index_map: what is kept.
        reason: (tensor, dimension) -> why nothing of it can be removed, or None; by default no reasons are reported.
    """
    return tuple(_layer_reports(model, index_map, reason))


def _layer_reports(
    model: nn.Module, index_map: IndexMap, reason: Callable[[str, int], str | None] | None
) -> Iterator[LayerReport]:
    for name, module in model.named_modules():
        own = {} if _is_parametrization(name) else _own_parameters(module)
        if not own:
            continue
        maps = {key: index_map.tensors[f"{name}.{key}" if name else key] for key in own}
        sizes = (sum(p.numel() for p in own.values()), sum(math.prod(m.compact_shape) for m in maps.values()))
        key = "weight" if "weight" in own else max(own, key=lambda each: own[each].numel())
        changed = index_map.attributes.get(name, {})
        out = _out_dim(module, own[key].dim())
        read, written = _size_attributes(module)
        single = own[key].dim() == 0  # a number, such as a learnt temperature
        before, after = (1, 1) if single else (maps[key].shape[out], maps[key].compact_shape[out])
        if written is not None:
            before = getattr(module, written)
            after = changed.get(written, before)
        inputs = None if read is None else (getattr(module, read), changed.get(read, getattr(module, read)))
        why = None
        if before == after:
            why = reason(f"{name}.{key}" if name else key, out) if reason and not single else None
            why = "it is a single number" if single else "it has a single channel" if before == 1 else why
            why = why or ("the budget is met without it" if reason else None)
        yield LayerReport(name or "(model)", type(module).__name__, before, after, inputs, sizes, why)


def tensor_reports(index_map: IndexMap) -> tuple[LayerReport, ...]:
    """Every tensor of a map with two dimensions or more, where nothing but the map is known."""
    return tuple(
        LayerReport(
            name,
            "tensor",
            tensor.shape[0],
            tensor.compact_shape[0],
            (tensor.shape[1], tensor.compact_shape[1]),
            (math.prod(tensor.shape), math.prod(tensor.compact_shape)),
            None,
        )
        for name, tensor in index_map.tensors.items()
        if len(tensor.shape) > 1
    )


def unrounded(layers: Sequence[LayerReport], round_to: int | None) -> Iterator[str]:
    """One line for the layers that lost outputs and are not left with a multiple of `round_to`."""
    found = [layer for layer in layers if layer.after < layer.before and layer.after % (round_to or 1)]
    found = [layer for layer in found if layer.inputs is not None]
    if found:
        names = listed([f"{layer.name} ({layer.after} of {layer.before})" for layer in found], most=4)
        yield (
            f"round_to={round_to} does not hold for {names}: some of their outputs can't go, or are parts of "
            "several coupled groups"
        )


def _is_parametrization(name: str) -> bool:
    """Whether a module only holds what another one's weight is computed from."""
    return "parametrizations" in name.split(".")


def _own_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """A layer's parameters by their names inside it, those that its weight is computed from included."""
    own = dict(module.named_parameters(recurse=False))
    computed = getattr(module, "parametrizations", None)
    if isinstance(computed, nn.Module) and parametrize.is_parametrized(module):
        own |= {f"parametrizations.{key}": value for key, value in computed.named_parameters()}
    return own


def _out_dim(module: nn.Module, rank: int) -> int:
    """The dimension of a layer's weight that counts its outputs."""
    return weight_dims(module)[0] if isinstance(module, PRODUCTS) else max(rank - 1, 0)


def _size_attributes(module: nn.Module) -> tuple[str | None, str] | tuple[None, None]:
    """The attributes that count the inputs and outputs of a layer whose outputs are not its inputs."""
    counts = counts_of(module) if isinstance(module, (*PRODUCTS, nn.RNNBase, nn.RNNCellBase)) else None
    return counts or (None, None)
