"""Every cut that removing channels of one layer entails, with the channel that each removed index comes from."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch_pruning._helpers import _HybridIndex
from torch_pruning.dependency.dependency import Dependency


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


def closure(graph: tp.DependencyGraph, root: Dependency, channels: int) -> Closure:
    """Site -> int64 pairs [n, 2] of (index to remove, root channel that entails it); equal ones are one tensor.

    `DependencyGraph.get_pruning_group` walks the same way, but keeps one root channel per index where several
    entail it (a residual sum over shifted channels, a reshape), which a plan must know of.
    """
    found: dict[Site, set[tuple[int, int]]] = {}
    stack = [(root, [_HybridIndex(idx=i, root_idx=i) for i in range(channels)])]
    while stack:
        dependency, indices = stack.pop()
        known = found.setdefault(Site(dependency.target, dependency.handler), set())
        fresh = [index for index in indices if tuple(index) not in known]
        if not fresh:
            continue
        known.update(map(tuple, fresh))
        for following in dependency.target.dependencies:
            if following.is_triggered_by(dependency.handler):
                stack.append((following, _mapped(fresh, following.index_mapping)))
    shared: dict[tuple[tuple[int, int], ...], Tensor] = {}
    return {
        site: shared.setdefault(key := tuple(sorted(pairs)), torch.tensor(key, dtype=torch.int64).view(-1, 2))
        for site, pairs in found.items()
        if not any(site.node.module is ignored for ignored in graph.ignored_params)
    }


def _mapped(indices: list[Any], mappings: Iterable[Callable[..., Any] | None]) -> list[Any]:
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
