"""Give coupled groups torch-pruning's own form, for its criteria and all others that take a `Group`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch_pruning as tp
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.instancenorm import _InstanceNorm
from torch_pruning import _helpers
from torch_pruning.dependency.dependency import Dependency
from torch_pruning.dependency.group import Group
from torch_pruning.dependency.node import Node
from torch_pruning.pruner import function

from hfp.layers.products import is_depthwise, weight_dims
from hfp.reconstruct.coupling.rules.labels import Array, Line
from hfp.reconstruct.coupling.wiring import CoupledGroup, Wiring

_OUT = {
    _BatchNorm: function.prune_batchnorm_out_channels,
    _InstanceNorm: function.prune_instancenorm_out_channels,
    nn.GroupNorm: function.prune_groupnorm_out_channels,
    nn.PReLU: function.prune_prelu_out_channels,
}


Side = tuple[Any, Any, int, Array]
"""A layer or parameter, torch-pruning's function that prunes it, the dimension, and the dimension's line."""


class TorchGroups:
    """Makes torch-pruning groups that point to the layers of one model.

    A layer that writes the group's channels comes first, with one output for each channel of the group. Further outputs
    of it that belong to the same channels follow as another item.
    """

    def __init__(self, wiring: Wiring, model: nn.Module) -> None:
        self._wiring = wiring
        self._graph = tp.DependencyGraph()
        self._graph.model = model
        self._graph._module2name = {module: name for name, module in model.named_modules()}
        self._graph._param_to_name = {parameter: name for name, parameter in model.named_parameters()}
        self._graph.module2node = {}
        self._sides = list(_sides(wiring, model))
        self._reached = self._sides_by_group()

    def group(self, group: CoupledGroup) -> Group:
        """Return all channels of a coupled group, in its order."""
        position = np.full(self._wiring.trace.labels.count, -1)
        position[list(group.classes)] = np.arange(len(group.classes))
        found = Group()
        found._DG = self._graph
        sides = self._reached[group.name]
        # criteria of torch-pruning take the width of a group from the first layer that they score
        for target, handler, dim, line in sorted(sides, key=lambda side: (_rank(side[1]), side[3] is not group.line)):
            positions = position[self._wiring.classes.of[line]]
            for indices in _rounds(positions, split=not len(found)):
                item = _helpers.GroupItem(self._dependency(target, handler, dim), indices.tolist())
                item.root_idxs = positions[indices].tolist()
                found._group.append(item)
        return found

    def _sides_by_group(self) -> dict[str, list[Side]]:
        """Return, by group, the sides that have an index of one of its channels."""
        names = list(self._wiring.groups)
        group_of = np.full(self._wiring.trace.labels.count, -1)
        for place, group in enumerate(self._wiring.groups.values()):
            group_of[list(group.classes)] = place
        found: dict[str, list[Side]] = {name: [] for name in names}
        for side in self._sides:
            for place in set(group_of[self._wiring.classes.of[side[3]]].tolist()) - {-1}:
                found[names[place]].append(side)
        return found

    def _dependency(self, target: nn.Module | nn.Parameter, handler: Any, dim: int) -> Dependency:
        is_parameter = isinstance(target, nn.Parameter)
        name = (self._graph._param_to_name if is_parameter else self._graph._module2name)[target]
        node = Node(target, None, name)
        node.pruning_dim = dim
        self._graph.module2node.setdefault(target, node)
        return Dependency(handler, handler, node, node)


def _rank(handler: Any) -> int:
    if handler in (function.prune_conv_out_channels, function.prune_linear_out_channels):
        return 0
    return 1 if handler in (function.prune_conv_in_channels, function.prune_linear_in_channels) else 2


def _rounds(positions: Array, split: bool) -> Iterator[Array]:
    """Yield the indices that belong to the group.

    With `split`, the first index of each channel comes first, in order, and the rest follows.
    """
    inside = np.flatnonzero(positions >= 0)
    if not len(inside):
        return
    if not split:
        yield inside
        return
    _, first = np.unique(positions[inside], return_index=True)
    yield inside[first]
    rest = np.delete(inside, first)
    if len(rest):
        yield rest


def _sides(wiring: Wiring, model: nn.Module) -> Iterator[Side]:
    """Yield a side for everything that can be pruned."""
    covered: set[int] = set()
    for name, module in model.named_modules():
        prefix = f"{name}." if name else ""
        weight = wiring.trace.tensors.get(f"{prefix}weight") or wiring.trace.tensors.get(f"{prefix}running_mean")
        found = list(_layer_sides(name, module, weight, wiring)) if weight else []
        if found:
            covered.update(id(parameter) for parameter in module.parameters(recurse=False))
        yield from ((module, handler, -1, line) for handler, line in found if line is not None)
        if isinstance(module, nn.Embedding) and weight and weight[0] is not None:
            yield module.weight, function.prune_parameter_out_channels, 0, weight[0]
    for name, parameter in model.named_parameters():
        if id(parameter) not in covered:
            for dim, line in enumerate(wiring.trace.tensors[name]):
                if line is not None:
                    yield parameter, function.prune_parameter_out_channels, dim, line


def _layer_sides(name: str, module: nn.Module, weight: tuple[Line, ...], wiring: Wiring) -> Iterator[tuple[Any, Line]]:
    if isinstance(module, _ConvNd):
        entering, out = wiring.trace.channels.get(name) or tuple(weight[dim] for dim in reversed(weight_dims(module)))
        if is_depthwise(module):
            yield function.prune_depthwise_conv_out_channels, out
        else:
            yield function.prune_conv_out_channels, out
            yield function.prune_conv_in_channels, entering
    elif isinstance(module, nn.Linear):
        yield function.prune_linear_out_channels, weight[0]
        yield function.prune_linear_in_channels, weight[1]
    elif isinstance(module, nn.LayerNorm) and len(weight) == 1:
        yield function.prune_layernorm_out_channels, weight[0]
    elif isinstance(module, nn.Embedding):
        yield function.prune_embedding_out_channels, weight[1]
    else:
        yield from ((handler, weight[0]) for kind, handler in _OUT.items() if isinstance(module, kind))
