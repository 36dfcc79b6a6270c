"""Let optimizer state follow its channels.

Momentum and Adam moments of a full model become those of its compact one, and back.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from hfp.reconstruct.errors import MapError
from hfp.reconstruct.maps.index_map import IndexMap, TensorMap

OptimizerState = Mapping[str, Any]


def restrict_optimizer(full: OptimizerState, index_map: IndexMap, names: Iterable[str] | None = None) -> dict[str, Any]:
    """Cut the `state_dict` of an optimizer over the full model to one over the compact model.

    Tensors of a parameter's shape (SGD's momentum, Adam's moments) keep the entries that the parameter keeps. Scalars
    (step counts) and all settings are copied.

    Args:
        full: `optimizer.state_dict()` over the full model's parameters; it is not changed.
        index_map: which entries are kept.
        names: the parameters' names in the order in which the optimizer was given them. They are needed unless the
            optimizer was made from `named_parameters()`, which stores them.

    Returns:
        A state_dict for the same optimizer over the compact model's parameters, in the same order.

    Raises:
        MapError: a parameter has no known name, or its state has a shape that cannot follow it (factored moments).

    >>> import torch
    >>> from hfp.reconstruct import Coupling, compact_model, restrict_optimizer
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 2))
    >>> coupling = Coupling.trace(model, torch.randn(2, 4))
    >>> index_map = coupling.index_map(coupling.plan({"0": [0, 2, 5]}))
    >>> names = [name for name, _ in model.named_parameters()]
    >>> full = torch.optim.Adam(model.parameters()).state_dict()
    >>> optimizer = torch.optim.Adam(compact_model(model, index_map).parameters())
    >>> optimizer.load_state_dict(restrict_optimizer(full, index_map, names))
    """
    named = _named(full, index_map, names)
    state = {}
    for number, entry in full["state"].items():
        name, tensor = named[number]
        state[number] = {
            key: tensor.restrict(value) if _follows(value, tensor.shape, f"{name}: {key}") else copy.deepcopy(value)
            for key, value in entry.items()
        }
    return {"state": state, "param_groups": copy.deepcopy(full["param_groups"])}


def embed_optimizer(
    sub: OptimizerState, into: OptimizerState, index_map: IndexMap, names: Iterable[str] | None = None
) -> dict[str, Any]:
    """Put the `state_dict` of an optimizer over the compact model back into one over the full model.

    Kept entries come from `sub`, all others from `into`. Where `into` has no state yet, entries that are not kept
    become zero, as they are in a fresh optimizer. Scalars (step counts) come from `sub`, settings from `into`.

    Args:
        sub: the state_dict of an optimizer over the compact model's parameters; it is not changed.
        into: the state_dict of the same kind of optimizer over the full model's parameters, in the same order; it is
            not changed.
        index_map: which entries are kept.
        names: the parameters' names, as for `restrict_optimizer`.

    Returns:
        A state_dict for the optimizer over the full model's parameters.

    Raises:
        MapError: `restrict_optimizer` would raise it, or the two optimizers were given different parameters.

    >>> import torch
    >>> from hfp.reconstruct import IndexMap, embed_optimizer
    >>> model = torch.nn.Linear(4, 2)
    >>> state = torch.optim.SGD(model.parameters(), lr=0.1).state_dict()
    >>> back = embed_optimizer(state, state, IndexMap.identity(model), ["weight", "bias"])
    """
    named = _named(sub, index_map, names)
    if named != _named(into, index_map, names):
        raise MapError("the two optimizers were given different parameters")
    state = copy.deepcopy(dict(into["state"]))
    for number, entry in sub["state"].items():
        name, tensor = named[number]
        before = state.setdefault(number, {})
        for key, value in entry.items():
            if not _follows(value, tensor.compact_shape, f"{name}: {key}"):
                before[key] = copy.deepcopy(value)
                continue
            under = before.get(key)
            if not isinstance(under, Tensor):
                under = torch.zeros(tensor.shape, dtype=value.dtype, device=value.device)
            elif tuple(under.shape) != tensor.shape:
                raise MapError(f"{name}: {key}: expected shape {list(tensor.shape)}, got {list(under.shape)}")
            before[key] = tensor.embed(value, under)
    return {"state": state, "param_groups": copy.deepcopy(into["param_groups"])}


def _named(
    optimizer: OptimizerState, index_map: IndexMap, names: Iterable[str] | None
) -> dict[int, tuple[str, TensorMap]]:
    """Return the name and the map of each parameter, by its number in the optimizer."""
    groups = optimizer["param_groups"]
    numbers = [number for group in groups for number in group["params"]]
    if names is None:
        if not all("param_names" in group for group in groups):
            raise MapError(
                "this optimizer does not know its parameters' names; give `names`, "
                "for instance [name for name, _ in model.named_parameters()]"
            )
        names = [name for group in groups for name in group["param_names"]]
    names = list(names)
    unknown = [name for name in names if name not in index_map.tensors]
    if unknown or len(names) != len(numbers):
        raise MapError(f"{len(names)} names for {len(numbers)} parameters, unknown to the index map: {unknown[:4]}")
    return {number: (name, index_map.tensors[name]) for number, name in zip(numbers, names, strict=True)}


def _follows(value: Any, shape: tuple[int, ...], where: str) -> bool:
    """Return whether a piece of state has one entry per parameter entry; scalars and non-tensors do not."""
    if not isinstance(value, Tensor) or (value.dim() == 0 and shape != ()):
        return False
    if tuple(value.shape) != shape:
        raise MapError(f"{where} has shape {list(value.shape)}, the parameter {list(shape)}; it can't be mapped")
    return True
