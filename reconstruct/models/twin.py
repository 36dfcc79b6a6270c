"""Copy modules so that their tensors hold their own flat indices.

Surgery that is done on such a copy shows what it keeps.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from hfp.reconstruct.errors import MapError
from hfp.reconstruct.maps.factor import factor, flat_indices
from hfp.reconstruct.maps.index_map import TensorMap

_HOOKS = tuple(name for name in vars(nn.Module()) if name.endswith("_hooks"))

_COMMON = frozenset({bool, int, float, str, dict, OrderedDict, set, type(None)})  # types of most attributes


def tensors_of(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the parameters and buffers with their names inside `module`, shared ones under every name."""
    parts = [(f"{name}." if name else "", part) for name, part in module.named_modules(remove_duplicate=False)]
    for kind in ("_parameters", "_buffers"):
        for prefix, part in parts:
            yield from ((prefix + name, tensor) for name, tensor in getattr(part, kind).items() if tensor is not None)


def computed(model: nn.Module) -> dict[int, Tensor]:
    """Return detached forms of tensors that modules keep but compute anew, by the identity of the tensor.

    Copying a module fails on the tensors themselves.
    """
    found = (
        tensor
        for module in model.modules()
        for value in vars(module).values()
        if type(value) not in _COMMON
        for tensor in _kept(value)
    )
    return {id(tensor): tensor.detach() for tensor in found if not tensor.is_leaf}


def _kept(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in a module's attribute, which may be nested in lists and tuples."""
    if isinstance(value, Tensor):
        yield value
    elif type(value) in (list, tuple):
        for item in value:
            yield from _kept(item)


def joined(prefix: str, local: str) -> str:
    """Return the name of something called `local` inside the module or parameter called `prefix`."""
    return ".".join(part for part in (prefix, local) if part)


def like(tensor: Tensor, values: Tensor) -> Tensor:
    """Return `values`, as a parameter if `tensor` is one."""
    if type(tensor) is Tensor or not isinstance(tensor, nn.Parameter):  # most buffers are seen at once
        return values
    return nn.Parameter(values, values.is_floating_point())


class Twin:
    """A copy of `module`, without its hooks and weights, in which every tensor holds its own flat indices."""

    def __init__(self, module: nn.Module) -> None:
        self._before = dict(tensors_of(module))
        memo = {id(tensor): like(tensor, flat_indices(tensor)) for tensor in self._before.values()}
        self._given = {name: memo[id(tensor)] for name, tensor in self._before.items()}
        no_hooks: dict[int, object] = {
            id(vars(part)[name]): OrderedDict() for part in module.modules() for name in _HOOKS
        }
        self.module = copy.deepcopy(module, {**memo, **no_hooks})

    def kept(self, where: str) -> dict[str, TensorMap]:
        """Return the cut of every tensor that surgery on the twin replaced.

        Raises:
            MapError: what is left cannot be described by kept indices (see `factor`).
        """
        return {
            name: factor(tensor, tuple(self._before[name].shape), joined(where, name))
            for name, tensor in tensors_of(self.module)
            if name in self._given and tensor is not self._given[name]
        }


def tied(model: nn.Module) -> list[list[str]]:
    """Return the names of every tensor that has several names."""
    names: dict[int, list[str]] = {}
    for name, tensor in tensors_of(model):
        names.setdefault(id(tensor), []).append(name)
    return [shared for shared in names.values() if len(shared) > 1]


def check_tied(shared: Iterable[list[str]], tensors: Mapping[str, TensorMap]) -> None:
    """Refuse names that share one tensor but keep different indices of it.

    Raises:
        MapError: some do; the message names two of them.
    """
    for names in shared:
        for name in names[1:]:
            if tensors[name] != tensors[names[0]]:
                raise MapError(
                    f"{names[0]} and {name} share one tensor but keep different indices "
                    f"({tensors[names[0]]}; {tensors[name]}); untie them before, or leave their layers out"
                )
