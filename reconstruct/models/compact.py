"""Build the compact model that an index map describes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from hfp.layers.calling import modes_kept
from hfp.reconstruct.errors import MapError
from hfp.reconstruct.maps.index_map import IndexMap
from hfp.reconstruct.models.attributes import apply
from hfp.reconstruct.models.copying import copied
from hfp.reconstruct.models.twin import check_tied, computed, like, tensors_of, tied

_FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}


def compact_model(parent: nn.Module, index_map: IndexMap, state: Mapping[str, Tensor] | None = None) -> nn.Module:
    """Build the compact model of an index map, without a full-size copy.

    Args:
        parent: the full model; it is not changed.
        index_map: a map that was made for this model.
        state: the compact state to fill it with, by default the kept entries of `parent`. It is copied and cast to the
            parent's dtypes and devices. When the parent is on the meta device, it stays on its own device.

    Returns:
        A new module of the compact shapes.

    Raises:
        MapError: the map is of another model, or `state` is not its compact state.

    >>> import torch
    >>> from hfp.reconstruct import Coupling, compact_model
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 2))
    >>> coupling = Coupling.trace(model, torch.randn(2, 4))
    >>> compact_model(model, coupling.index_map(coupling.plan({"0": [0, 2, 5]})))[0]
    Linear(in_features=4, out_features=3, bias=True)
    """
    full = parent.state_dict()
    if state is None:
        values = index_map.restrict(full)
    else:
        index_map.check_full(full)
        index_map.check_compact(state)
        values = {name: _adopted(value, full[name]) for name, value in state.items()}
    return build(parent, index_map, {name: laid_out(value, full[name]) for name, value in values.items()})


def build(parent: nn.Module, index_map: IndexMap, values: Mapping[str, Tensor]) -> nn.Module:
    """Return the compact model of `parent` that holds `values` themselves, without copying them.

    Raises:
        MapError: the map is of another model, or names that share a tensor are given different values.
    """
    index_map.check_transient(parent)
    check_tied(tied(parent), {**index_map.tensors, **index_map.transient})
    tensors: dict[int, Tensor] = {}
    first: dict[int, str] = {}
    for name, tensor in tensors_of(parent):
        value = values.get(name)
        if value is None and name in index_map.transient:
            value = index_map.transient[name].restrict(tensor.detach())
        if value is None:
            continue
        if id(tensor) in tensors:
            if not value.is_meta and not torch.equal(value, tensors[id(tensor)]):
                raise MapError(f"{first[id(tensor)]} and {name} share one tensor but are given different values")
            continue
        tensors[id(tensor)], first[id(tensor)] = like(tensor, value).requires_grad_(tensor.requires_grad), name
    model = copied(parent, {**computed(parent), **tensors})
    apply(model, index_map.attributes)
    _without_nested_tensors(model)
    _forget(model)
    return model


def _without_nested_tensors(model: nn.Module) -> None:
    """Switch nested tensors off in encoders with an odd number of heads, as PyTorch does where it makes an encoder."""
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoder):
            attention = [part for part in module.modules() if isinstance(part, nn.MultiheadAttention)]
            if any(part.num_heads % 2 for part in attention):
                module.use_nested_tensor = False


def _forget(model: nn.Module) -> None:
    """Let modules drop what they keep between calls in evaluation mode, as they do when they go back to training."""
    if any(type(module).train is not nn.Module.train for module in model.modules()):
        with modes_kept(model):
            model.train()


def device_for(value: Tensor, full: Tensor) -> torch.device:
    """Return the device of a compact tensor: that of its full one, unless this is the meta device."""
    return value.device if full.is_meta else full.device


def _adopted(value: Tensor, full: Tensor) -> Tensor:
    return value.detach().to(device=device_for(value, full), dtype=full.dtype, copy=True)


def laid_out(value: Tensor, full: Tensor) -> Tensor:
    """Return a compact tensor in the memory format of its full one, with which convolutions are fast or not."""
    form = _FORMATS.get(full.dim(), torch.contiguous_format)
    if full.is_contiguous() or not full.is_contiguous(memory_format=form):
        return value
    return value.contiguous(memory_format=form)
