"""Every cut that removing channels of one layer entails, with the channel that each removed index comes from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch_pruning._helpers import _HybridIndex
from torch_pruning.dependency.dependency import Dependency

Pairs = dict[tuple[Any, Callable[..., Any]], Tensor]


def closure(graph: Any, root: Dependency, channels: int) -> Pairs:
    """(target node, handler) -> int64 pairs [n, 2] of (index to remove, root channel that entails it).

    `DependencyGraph.get_pruning_group` walks the same way, but keeps one root channel per index where several
    entail it (a residual sum over shifted channels, a reshape), which a plan must know of.
    """
    found: dict[tuple[Any, Callable[..., Any]], set[tuple[int, int]]] = {}
    stack = [(root, [_HybridIndex(idx=i, root_idx=i) for i in range(channels)])]
    while stack:
        dependency, indices = stack.pop()
        known = found.setdefault((dependency.target, dependency.handler), set())
        fresh = [index for index in indices if (index.idx, index.root_idx) not in known]
        if not fresh:
            continue
        known.update((index.idx, index.root_idx) for index in fresh)
        for following in dependency.target.dependencies:
            if following.is_triggered_by(dependency.handler):
                mapped = fresh
                for mapping in following.index_mapping:
                    mapped = mapped if mapping is None else mapping(mapped)
                stack.append((following, mapped))
    return {
        key: torch.tensor(sorted(pairs), dtype=torch.int64).view(-1, 2)
        for key, pairs in found.items()
        if not any(key[0].module is ignored for ignored in graph.ignored_params)
    }
