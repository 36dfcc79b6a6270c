"""Build the compact model that an index map describes."""

from __future__ import annotations

import copy
from collections.abc import Mapping

from torch import Tensor, nn

from hfp.reconstruct._twin import like, tensors_of
from hfp.reconstruct.attributes import apply
from hfp.reconstruct.errors import MapError
from hfp.reconstruct.index_map import IndexMap, TensorMap


def compact_model(parent: nn.Module, index_map: IndexMap, state: Mapping[str, Tensor] | None = None) -> nn.Module:
    """A new module of the compact shapes; `parent` is not changed and no full-size copy is made.

    Args:
        parent: the full model.
        index_map: made for this model.
        state: the compact state to fill it with (cast to the parent's dtypes and devices; kept on its own device
            when the parent is on the meta device); by default the kept entries of `parent`.

    Raises:
        MapError: the map is of another model, or `state` is not its compact state.
    """
    full = parent.state_dict()
    values = index_map.restrict(full) if state is None else _adopted(index_map, state, full)
    tensors: dict[int, Tensor] = {}
    chosen: dict[int, TensorMap] = {}
    for name, tensor in tensors_of(parent):
        tensor_map = index_map.tensors.get(name) or index_map.transient.get(name)
        if tensor_map is None:
            continue
        if chosen.setdefault(id(tensor), tensor_map) != tensor_map:
            raise MapError(f"{name} shares its tensor with another name, but their kept indices differ")
        value = values[name] if name in values else tensor_map.restrict(tensor.detach())
        compact = like(tensor, value)
        compact.requires_grad_(tensor.requires_grad)
        tensors.setdefault(id(tensor), compact)
    model = copy.deepcopy(parent, tensors)
    apply(model, index_map.attributes)
    return model


def _adopted(index_map: IndexMap, state: Mapping[str, Tensor], full: Mapping[str, Tensor]) -> dict[str, Tensor]:
    index_map.check_full(full)
    index_map.check_compact(state)
    return {
        name: value.detach().to(full[name].dtype if full[name].is_meta else full[name], copy=True)
        for name, value in state.items()
    }
