"""Every cut that removing channels of one layer entails, with the channel that each removed index comes from."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, NamedTuple

import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch_pruning._helpers import GroupItem, _HybridIndex
from torch_pruning.dependency.dependency import Dependency

from hfp.reconstruct.errors import MapError


class Site(NamedTuple):
    """One way of cutting one layer: a node of the dependency graph and a torch-pruning function."""

    node: Any
    handler: Callable[..., Any]

    @property
    def channels(self) -> int | None:
        """Channels of the layer in the direction that the function cuts; None for operations without a size."""
        return self._ask("out_channels")

    @property
    def blocks(self) -> int:
        """Number of equal blocks of channels that must stay equal (grouped convolution, group norm)."""
        module = self.node.module
        if isinstance(module, nn.modules.conv._ConvNd) and module.groups == module.out_channels:
            return 1
        return self._ask("out_channel_groups")

    def _ask(self, what: str) -> Any:
        pruner: Any = self.handler.__self__  # type: ignore[attr-defined]
        pruner.pruning_dim = self.node.pruning_dim
        direction = what if self.handler == pruner.prune_out_channels else what.replace("out", "in", 1)
        return getattr(pruner, f"get_{direction}")(self.node.module)


Closure = dict[Site, Tensor]
_MOST_VISITS = 1000  # new channels reach the same place from a few sides, never that often
Reached = tuple[Dependency, list[_HybridIndex]]


class Graph(tp.DependencyGraph):
    """torch-pruning's graph of a model that is never cut, with a walk over coupled layers that always ends.

    `DependencyGraph.get_pruning_group` stops where a cut with the very same list of indices was seen. Where channels
    are summed with shifted ones (RexNet), or an index mapping is wrong, the lists keep changing, and it runs for
    minutes or for ever.
    """

    def coupled_groups(self, ignored: Collection[nn.Module]) -> tuple[dict[str, tp.Group], dict[str, str]]:
        """Groups of all channels by the name of their root layer, and the reason for every root that has none.

        Groups that would cut the outputs of an ignored layer are in neither.
        """
        groups: dict[str, tp.Group] = {}
        failed: dict[str, str] = {}
        seen = set(ignored)
        for module in self.module2node:
            if module in seen or not isinstance(module, nn.modules.conv._ConvNd | nn.Linear):
                continue
            seen.add(module)
            pruner = self.get_pruner_of_module(module)
            try:
                group = self.get_pruning_group(
                    module, pruner.prune_out_channels, range(pruner.get_out_channels(module))
                )
            except Exception as error:  # index mappings fail in many ways on shapes they were not made for
                failed[self._module2name[module]] = f"{type(error).__name__}: {error}"
                continue
            cut = {item.dep.target.module for item in group.items if self.is_out_channel_pruning_fn(item.dep.handler)}
            seen |= cut
            if cut.isdisjoint(ignored):
                groups[self._module2name[module]] = group
        return groups, failed

    def get_pruning_group(self, module: Any, pruning_fn: Callable[..., Any], idxs: Sequence[int]) -> tp.Group:
        """See `DependencyGraph.get_pruning_group`.

        Raises:
            MapError: torch-pruning's index mappings lead to indices that a layer does not have.
        """
        if isinstance(module, nn.modules.conv._ConvNd) and 1 < module.out_channels == module.groups:
            pruning_fn = tp.prune_depthwise_conv_out_channels
        node = self.module2node[module]
        reached = _walk(Dependency(pruning_fn, pruning_fn, node, node), idxs)
        group = tp.Group()
        for dependency, indices in reached:
            if not any(dependency.target.module is ignored for ignored in self.ignored_params):
                group.add_and_merge(dependency, indices)
        for number, (dependency, indices) in enumerate(group.items):
            group[number] = item = GroupItem(dependency, [index.idx for index in indices])
            item.root_idxs = [index.root_idx for index in indices]
        group._DG = self
        return group


def closure(graph: Graph, root: Dependency, channels: int) -> Closure:
    """Site -> int64 pairs [n, 2] of (index to remove, root channel that entails it); equal ones are one tensor.

    A torch-pruning group names one root channel per index; where several entail it (a residual sum over shifted
    channels, a reshape), a plan must know of all.
    """
    found: dict[Site, set[tuple[int, int]]] = {}
    for dependency, indices in _walk(root, range(channels)):
        if not any(dependency.target.module is ignored for ignored in graph.ignored_params):
            found.setdefault(Site(dependency.target, dependency.handler), set()).update(map(tuple, indices))
    shared: dict[tuple[tuple[int, int], ...], Tensor] = {}
    return {
        site: shared.setdefault(key := tuple(sorted(pairs)), torch.tensor(key, dtype=torch.int64).view(-1, 2))
        for site, pairs in found.items()
    }


def _walk(root: Dependency, channels: Iterable[int]) -> list[Reached]:
    """Every cut that removing these channels entails, with the indices that it reaches for the first time.

    Raises:
        MapError: it would reach an index that a layer does not have, or return to the same place without end.
    """
    start = [_HybridIndex(idx=i, root_idx=i) for i in channels]
    known = {Site(root.target, root.handler): set(start)}
    reached = [(root, start)]
    visits: dict[Site, int] = {}
    stack = [(root, start)]
    while stack:
        dependency, indices = stack.pop()
        for following in dependency.target.dependencies:
            if not following.is_triggered_by(dependency.handler):
                continue
            site = Site(following.target, following.handler)
            before = known.setdefault(site, set())
            fresh = [index for index in _mapped(indices, following.index_mapping) if index not in before]
            size, visits[site] = site.channels, visits.get(site, 0) + 1
            if visits[site] > _MOST_VISITS or (size and fresh and max(fresh).idx >= size):
                raise MapError(f"torch-pruning's index mappings of {following.target.name} do not fit its channels")
            if fresh:
                before.update(fresh)
                reached.append((following, fresh))
                stack.append((following, fresh))
    return reached


def _mapped(indices: list[_HybridIndex], mappings: Iterable[Callable[..., Any] | None]) -> list[_HybridIndex]:
    for mapping in mappings:
        if mapping is not None:
            found = mapping(indices)
            if any(index.root_idx is None for index in found):  # grouped-query attention's mapping drops the roots
                found = [new._replace(root_idx=old.root_idx) for new, old in zip(found, indices, strict=True)]
            indices = found
    return indices


def units(closure: Closure, channels: int) -> Tensor:
    """For each root channel the number of its unit, int64 [channels]; a unit is kept or removed as a whole.

    Channels share a unit when they entail the same index somewhere, or hold the same place in the blocks of a
    grouped layer.
    """
    label = list(range(channels))

    def find(channel: int) -> int:
        while label[channel] != channel:
            label[channel] = label[label[channel]]
            channel = label[channel]
        return channel

    distinct = {(id(pairs), site.channels, site.blocks): pairs for site, pairs in closure.items()}
    for (_, size, blocks), pairs in distinct.items():
        first: dict[int, int] = {}
        for index, root in pairs.tolist():
            place = index if size is None or blocks == 1 else index % (size // blocks)
            one, other = find(root), find(first.setdefault(place, root))
            label[max(one, other)] = min(one, other)
    return torch.tensor([find(channel) for channel in range(channels)]).unique(return_inverse=True)[1]


def in_model(closure: Closure, model: nn.Module) -> Closure:
    """The sites that are layers or parameters of the model, without the graph's dummy operations."""
    known = {id(part) for part in (*model.modules(), *model.parameters())}
    return {site: pairs for site, pairs in closure.items() if id(site.node.module) in known}
