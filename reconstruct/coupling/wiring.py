"""Use a solved trace: find the coupled groups, and which attributes of the modules are sizes that follow them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from hfp.layers.products import PRODUCTS, counts_of, is_depthwise, reads_single_channels, weight_dims
from hfp.reconstruct.coupling.classes import Classes, solve
from hfp.reconstruct.coupling.costs import PlanCosts
from hfp.reconstruct.coupling.rules.labels import Array, Line
from hfp.reconstruct.coupling.tracing import Trace
from hfp.reconstruct.maps.index_map import IndexMap, TensorMap
from hfp.reconstruct.models.attributes import value_of
from hfp.reconstruct.models.twin import tensors_of

Gone = NDArray[np.bool_]
"""This says for every label whether its class is removed, `[labels]`; it is indexed by class."""


@dataclass(frozen=True)
class Binding:
    """An attribute of a module (or one item of it, if it is a list or tuple) that is the size of a dimension.

    "config.heads" is an attribute of an object that the module keeps.
    """

    module: str
    attribute: str
    position: int | None
    line: Array


@dataclass(frozen=True)
class CoupledGroup:
    """Channels that are ranked against each other; each is a class of indices that go together.

    Args:
        name: the layer (or parameter) that writes them.
        classes: one class per channel.
        line: the root's dimension.
    """

    name: str
    classes: tuple[int, ...]
    root: str
    line: Array


@dataclass(frozen=True)
class Wiring:
    """What may be removed from a model, and what must follow.

    Args:
        fixed: the dimensions that keep all indices, with the reason, beyond what the trace says.
        bindings: the attributes that follow dimensions.
        links: the pairs of dimensions that must lose the same share.
    """

    model: nn.Module
    trace: Trace
    heads_first: bool | None
    fixed: tuple[tuple[Array, str], ...] = ()
    bindings: tuple[Binding, ...] = ()
    links: tuple[tuple[Array, Array], ...] = ()

    @cached_property
    def classes(self) -> Classes:
        """Return the solution of the trace."""
        return solve(self.trace.labels, self.fixed, self.heads_first)

    @cached_property
    def groups(self) -> dict[str, CoupledGroup]:
        """Return the coupled groups by name, in the order of the layers that write them."""
        return {group.name: group for group in _groups(self)}

    @cached_property
    def linked(self) -> tuple[tuple[str, ...], ...]:
        """Return the groups that must lose the same share of their channels; every group is in exactly one tuple."""
        return _linked(self)

    @cached_property
    def units(self) -> dict[str, int]:
        """Return of how many channels a group loses a multiple, where an operation needs sizes to be multiples."""
        return _units(self)

    @cached_property
    def bound(self) -> frozenset[tuple[str, str, int | None]]:
        """Return the attributes that follow a dimension; those of one that stays may still follow another."""
        free = (binding for binding in self.bindings if self.classes.reason(binding.line) is None)
        return frozenset((binding.module, binding.attribute, binding.position) for binding in free)

    @cached_property
    def costs(self) -> PlanCosts:
        """Return the function that counts the model's costs without some classes."""
        return PlanCosts(self.classes.of, self.trace.counted, self.model, self.trace.tensors)

    def extended(
        self,
        bindings: Iterable[Binding] = (),
        links: Iterable[tuple[Array, Array]] = (),
        fixed: Iterable[tuple[Array, str]] = (),
    ) -> Wiring:
        """Return a wiring with more to respect; it is solved again only if that is needed."""
        added = tuple(fixed)
        found = replace(
            self, bindings=(*self.bindings, *bindings), links=(*self.links, *links), fixed=(*self.fixed, *added)
        )
        if not added:
            found.__dict__.update(classes=self.classes, groups=self.groups, units=self.units)
        return found

    def gone(self, kept: Mapping[str, Sequence[int]]) -> Gone:
        """Return the classes that a plan removes."""
        gone = np.zeros(self.trace.labels.count, dtype=bool)
        for name, classes in self._group_classes.items():
            if name in kept:
                gone[classes] = True
                gone[classes[np.asarray(kept[name], dtype=np.int64)]] = False
        return gone

    @cached_property
    def _modules(self) -> dict[str, nn.Module]:
        return dict(self.model.named_modules(remove_duplicate=False))

    @cached_property
    def _group_classes(self) -> dict[str, Array]:
        return {name: np.array(group.classes) for name, group in self.groups.items()}

    def removed_by(self, index_map: IndexMap) -> Gone:
        """Return the classes that a map removes."""
        gone = np.zeros(self.trace.labels.count, dtype=bool)
        for name, lines in self.trace.tensors.items():
            kept = index_map.tensors.get(name) or index_map.transient.get(name)
            for line, indices in zip(lines, kept.kept if kept else (), strict=False):
                if line is not None and indices is not None:
                    gone[self.classes.of[np.delete(line, indices.numpy())]] = True
        return gone

    def left(self, line: Line, gone: Gone, size: int = 0) -> int:
        """Return how many indices of a dimension (of `size`, where it has no line) are left."""
        return size if line is None else int(len(line) - np.count_nonzero(gone[self.classes.of[line]]))

    def kept(self, tensor: Tensor, lines: Sequence[Line], gone: Gone) -> Tensor:
        """Return the part of a tensor of the full model that is left."""
        for dim, line in enumerate(lines):
            if line is not None:
                left = np.flatnonzero(~gone[self.classes.of[line]])
                if len(left) < len(line):
                    tensor = tensor.index_select(dim, torch.from_numpy(left).to(tensor.device))
        return tensor

    def index_map(self, gone: Gone) -> IndexMap:
        """Return the map of removing these classes."""
        state = self.model.state_dict()
        shared: dict[bytes, Tensor] = {}
        maps = {n: self._tensor_map(n, tuple(tensor.shape), gone, shared) for n, tensor in tensors_of(self.model)}
        transient = {name: found for name, found in maps.items() if name not in state and not found.is_identity}
        tensors = {name: maps[name] if name in maps else TensorMap.identity(tuple(state[name].shape)) for name in state}
        return IndexMap(tensors, self.attributes(gone), transient)

    def _tensor_map(self, name: str, shape: tuple[int, ...], gone: Gone, shared: dict[bytes, Tensor]) -> TensorMap:
        """Return the map of one tensor.

        Dimensions that keep the same indices share them, which aggregation makes use of.
        """
        kept: list[Tensor | None] = []
        for line in self.trace.tensors[name]:
            removed = None if line is None else gone[self.classes.of[line]]
            if removed is None or not removed.any():
                kept.append(None)
                continue
            key = removed.tobytes()
            if key not in shared:
                shared[key] = torch.from_numpy(np.flatnonzero(~removed))
            kept.append(shared[key])
        return TensorMap(shape, tuple(kept))

    def attributes(self, gone: Gone) -> dict[str, dict[str, Any]]:
        """Return the attributes that change when these classes go, with their new values, by module."""
        found: dict[str, dict[str, Any]] = {}
        for binding in self.bindings:
            before = value_of(self._modules[binding.module], binding.attribute)
            size = self.left(binding.line, gone)
            now = found.get(binding.module, {}).get(binding.attribute, before)
            after = size if binding.position is None else _replaced(now, binding.position, size)
            if after != before:
                found.setdefault(binding.module, {})[binding.attribute] = after
        return found


def layer_bindings(model: nn.Module, trace: Trace) -> Iterator[Binding]:
    """Yield the sizes that PyTorch's own layers keep beside their tensors."""
    for name, module in model.named_modules():
        if isinstance(module, nn.RNNBase | nn.RNNCellBase):
            yield from _recurrent_bindings(name, module, trace)
        weight = _weight_lines(name, module, trace)
        if weight is None:
            continue
        for attribute, line in _sizes(name, module, weight, trace):
            if line is not None and len(line) == getattr(module, attribute):
                yield Binding(name, attribute, None, line)
        if isinstance(module, nn.LayerNorm):
            for position, line in enumerate(weight):
                if line is not None:
                    yield Binding(name, "normalized_shape", position, line)


def _recurrent_bindings(name: str, module: nn.Module, trace: Trace) -> Iterator[Binding]:
    first = "" if isinstance(module, nn.RNNCellBase) else "_l0"
    places = {"input_size": "weight_ih", "hidden_size": "weight_hh"}
    if getattr(module, "proj_size", 0):
        places = {"input_size": "weight_ih", "hidden_size": "weight_hr", "proj_size": "weight_hh"}
    for attribute, tensor in places.items():
        lines = trace.tensors.get(f"{name}.{tensor}{first}" if name else f"{tensor}{first}")
        if lines is not None and lines[1] is not None:
            yield Binding(name, attribute, None, lines[1])


def _weight_lines(name: str, module: nn.Module, trace: Trace) -> tuple[Line, ...] | None:
    """Return the lines of a layer's weight, or of what it is computed from in its shape.

    Weight norm and spectral norm compute weights.
    """
    prefix = f"{name}." if name else ""
    found = trace.tensors.get(f"{prefix}weight") or trace.tensors.get(f"{prefix}running_mean")
    if found is None and isinstance(module, PRODUCTS):
        shape = tuple(module.weight.shape)
        found = next((trace.tensors[f"{prefix}{k}"] for k, t in tensors_of(module) if tuple(t.shape) == shape), None)
    return found


def _sizes(name: str, module: nn.Module, weight: tuple[Line, ...], trace: Trace) -> list[tuple[str, Line]]:
    counts = counts_of(module)
    if counts is None:
        return []
    read, written = counts
    if isinstance(module, _ConvNd) and name not in trace.channels and is_depthwise(module):
        out = weight[weight_dims(module)[0]]  # other code convolves with its weight
        return [(str(read), out), (written, out), ("groups", out)]
    if isinstance(module, PRODUCTS):
        entering, out = trace.channels.get(name) or tuple(weight[dim] for dim in reversed(weight_dims(module)))
        found = [(str(read), entering), (written, out)]
    else:
        found = [(written, weight[-1])]
    groups = {_ConvNd: "groups", nn.GroupNorm: "num_groups"}
    return found + [(name_, trace.groups.get(name)) for kind, name_ in groups.items() if isinstance(module, kind)]


def _replaced(value: Any, position: int, size: int) -> Any:
    items = list(value)
    items[position] = size
    return items if isinstance(value, list) else tuple(items)


def _groups(wiring: Wiring) -> Iterator[CoupledGroup]:
    """Yield the channels by the layer that writes them.

    Channels of one layer that go to different places are separate groups.
    """
    used = np.zeros(wiring.trace.labels.count, dtype=bool)
    used[wiring.classes.of[wiring.trace.used]] = True
    used &= wiring.classes.why == 0
    signatures = _signatures(wiring)
    for root, line in _roots(wiring):
        parts: dict[int, list[int]] = {}
        along = wiring.classes.of[line]
        for label in dict.fromkeys(along[used[along]].tolist()):
            parts.setdefault(int(signatures[label]), []).append(label)
        used[along] = False  # no other group may have these
        wide = [part for part in parts.values() if len(part) > 1]
        layer = root.rpartition(".")[0] if root.endswith(".weight") else root
        for number, part in enumerate(wide):
            yield CoupledGroup(layer if number == 0 else f"{layer}#{number + 1}", tuple(part), root, line)


def _signatures(wiring: Wiring) -> NDArray[np.uint64]:
    """Return for every class a number that tells apart what its removal cuts.

    That is the dimensions of tensors, and the parts that code names.
    """
    chance = np.random.default_rng(0)
    found = np.zeros(wiring.trace.labels.count, dtype=np.uint64)
    tensors = [line for lines in wiring.trace.tensors.values() for line in lines]
    parts = {id(line): line for call in wiring.trace.calls.values() for _, line in call.stated}
    for line in (*tensors, *parts.values()):
        if line is not None:
            np.add.at(found, wiring.classes.of[line], chance.integers(1 << 63, dtype=np.uint64))
    return found


def _roots(wiring: Wiring) -> Iterator[tuple[str, Array]]:
    """Yield (parameter, line) of the dimensions in which channels may originate.

    What layers write comes first, then other parameters.
    """
    passing: list[tuple[str, Array]] = []
    for name, parameter in wiring.model.named_parameters():
        module = wiring.model.get_submodule(name.rpartition(".")[0])
        lines: tuple[Line, ...] = wiring.trace.tensors[name]
        mixing = isinstance(module, PRODUCTS) and parameter is module.weight
        if mixing:
            out, _ = weight_dims(module)
            lines = lines[out : out + 1]
        depthwise = reads_single_channels(module)
        for line in lines:
            if line is not None and mixing and not depthwise:
                yield name, line
            elif line is not None:
                passing.append((name, line))
    yield from passing


def _units(wiring: Wiring) -> dict[str, int]:
    owner = {label: name for name, group in wiring.groups.items() for label in group.classes}
    found: dict[str, int] = {}
    for line, multiple in wiring.trace.labels.aligned:
        counts: dict[str, int] = {}
        for label, count in zip(*np.unique(wiring.classes.of[line], return_counts=True), strict=True):
            if int(label) in owner:
                name = owner[int(label)]
                counts[name] = math.gcd(counts.get(name, 0), int(count))
        for name, each in counts.items():
            found[name] = math.lcm(found.get(name, 1), multiple // math.gcd(multiple, each))
    return {name: unit for name, unit in found.items() if unit > 1}


def _linked(wiring: Wiring) -> tuple[tuple[str, ...], ...]:
    if not wiring.links:
        return tuple((name,) for name in wiring.groups)
    owner = {label: name for name, group in wiring.groups.items() for label in group.classes}
    parent = {name: name for name in wiring.groups}

    def find(name: str) -> str:
        while parent[name] != name:
            name = parent[name]
        return name

    for pair in wiring.links:
        names = [
            owner[label] for line in pair for label in np.unique(wiring.classes.of[line]).tolist() if label in owner
        ]
        for name in names[1:]:
            parent[find(name)] = find(names[0])
    together: dict[str, list[str]] = {}
    for name in wiring.groups:
        together.setdefault(find(name), []).append(name)
    return tuple(tuple(names) for names in together.values())
