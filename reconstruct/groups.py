"""The coupled groups of a model, traced once: any number of plans turned into index maps without tracing again."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn

from hfp.reconstruct._closure import Pairs, closure
from hfp.reconstruct._factor import factor, flat_indices
from hfp.reconstruct._twin import Twin, tensors_of
from hfp.reconstruct.attributes import changes, snapshot
from hfp.reconstruct.errors import MapError
from hfp.reconstruct.index_map import IndexMap, TensorMap
from hfp.reconstruct.plan import Plan


class ChannelGroups:
    """Coupled groups of a model: sets of layers whose channels must be removed together. Made by `trace`."""

    def __init__(self, model: nn.Module, graph: Any, groups: Mapping[str, Any]) -> None:
        self._model = model
        self._graph = graph
        self._groups = dict(groups)
        self._closures: dict[str, Pairs] = {
            name: closure(graph, group[0].dep, len(group[0].idxs)) for name, group in groups.items()
        }
        self._identity = IndexMap.identity(model)
        self.sizes: Mapping[str, int] = MappingProxyType({name: len(group[0].idxs) for name, group in groups.items()})

    @classmethod
    def trace(
        cls, model: nn.Module, example_inputs: Any, ignored_layers: Iterable[nn.Module | str] = ()
    ) -> ChannelGroups:
        """Copy the model, build its dependency graph and list the coupled groups.

        Args:
            model: the full model; not changed. On the meta device no weights are needed.
            example_inputs: what the model is called with, batch 2 or more; a tuple is unpacked, a dict are keywords.
            ignored_layers: modules of `model`, or their names, whose output channels stay.

        Raises:
            MapError: an ignored layer is not in the model, or nothing can be pruned.
        """
        own = copy.deepcopy(model)
        own.requires_grad_(True)
        ignored = _resolve(model, own, ignored_layers)
        with warnings.catch_warnings(), torch.enable_grad():
            warnings.simplefilter("ignore")
            graph = tp.DependencyGraph().build_dependency(own, example_inputs)
            found = list(graph.get_all_groups(ignored_layers=ignored))
        names = {id(module): name for name, module in own.named_modules()}
        groups = {names[id(group[0].dep.target.module)]: group for group in found}
        if not groups:
            raise MapError("no layer of this model can be pruned with these ignored layers")
        return cls(own, graph, groups)

    @property
    def names(self) -> tuple[str, ...]:
        """Name of each group's root layer, in the order of the graph."""
        return tuple(self._groups)

    def group(self, name: str) -> Any:
        """The torch-pruning Group of all channels, to hand to a criterion.

        Raises:
            MapError: no group has this name.
        """
        if name not in self._groups:
            raise MapError(f"no coupled group is called {name!r}; there are {', '.join(self.names[:6])}, ...")
        return self._groups[name]

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Put weights into the copy that the groups point to, so that criteria which read weights see them.

        Raises:
            MapError: `state` is no full state of this model.
        """
        self._identity.check_full(state)
        with torch.no_grad():
            for name, tensor in self._model.state_dict(keep_vars=True).items():
                tensor.copy_(state[name])

    def plan(self, kept: Mapping[str, Sequence[int] | Tensor]) -> Plan:
        """A checked plan; groups that are left out keep everything.

        Raises:
            MapError: unknown groups, or channels that are empty, out of range, repeated or not ascending.
        """
        return Plan(self.sizes, {name: tuple(map(int, channels)) for name, channels in kept.items()})

    def index_map(self, plan: Plan) -> IndexMap:
        """The map that pruning by `plan` has, without pruning or tracing.

        Raises:
            MapError: the plan is of other groups, or can't be mapped.
        """
        if dict(plan.sizes) != dict(self.sizes):
            raise MapError("this plan was made for other coupled groups")
        tensors = dict(self._identity.tensors)
        attributes: dict[str, dict[str, Any]] = {}
        for module, cuts in self._cuts(plan).items():
            self._apply(module, cuts, tensors, attributes)
        return IndexMap(tensors, attributes)

    def _cuts(self, plan: Plan) -> dict[Any, dict[Any, list[int]]]:
        """Module or parameter -> handler -> indices to remove, in original numbering."""
        removed: dict[tuple[Any, Any], list[Tensor]] = {}
        for name, pairs in self._closures.items():
            gone = torch.ones(self.sizes[name], dtype=torch.bool)
            gone[list(plan.kept[name])] = False
            if not gone.any():
                continue
            for key, pair in pairs.items():
                removed.setdefault(key, []).append(pair[gone[pair[:, 1]], 0])
        cuts: dict[Any, dict[Any, list[int]]] = {}
        for (node, handler), parts in removed.items():
            cuts.setdefault(node, {})[handler] = torch.cat(parts).unique().tolist()
        return cuts

    def _apply(
        self,
        node: Any,
        cuts: Mapping[Any, list[int]],
        tensors: dict[str, TensorMap],
        attributes: dict[str, dict[str, Any]],
    ) -> None:
        if isinstance(node.module, nn.Parameter):
            names = [name for name, tensor in tensors_of(self._model) if tensor is node.module]
            for handler, idxs in cuts.items():
                shadow = nn.Parameter(flat_indices(node.module))
                handler.__self__.pruning_dim = node.pruning_dim
                kept = factor(handler(shadow, idxs), tuple(node.module.shape), names[0])
                tensors.update({name: TensorMap(tuple(node.module.shape), kept) for name in names})
            return
        prefixes = [name for name, module in self._model.named_modules(remove_duplicate=False) if module is node.module]
        if not prefixes:
            return
        twin = Twin(node.module)
        before = snapshot(twin.module)
        for handler, idxs in cuts.items():
            handler.__self__.pruning_dim = node.pruning_dim
            handler(twin.module, idxs)
        for local, kept in twin.kept(prefixes[0]).items():
            for prefix in prefixes:
                name = f"{prefix}.{local}" if prefix else local
                tensors[name] = TensorMap(tensors[name].shape, kept)
        for name, changed in changes(before, twin.module).items():
            attributes[".".join(part for part in (prefixes[0], name) if part)] = changed


def _resolve(model: nn.Module, own: nn.Module, layers: Iterable[nn.Module | str]) -> list[nn.Module]:
    names = {id(module): name for name, module in model.named_modules()}
    modules = dict(own.named_modules())
    found: list[nn.Module] = []
    for layer in layers:
        name = layer if isinstance(layer, str) else names.get(id(layer))
        if name is None or name not in modules:
            raise MapError(f"ignored layer {layer!r} is not in the model")
        found.extend(modules[name].modules())
    return found
