"""Map the state of a compact model to that of its full model: `restrict` goes there and `embed` goes back."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from hfp.errors import counted
from hfp.reconstruct.errors import MapError
from hfp.reconstruct.maps.rows import add_columns, add_rows, put_rows
from hfp.reconstruct.maps.tables import html_table, share

State = Mapping[str, Tensor]


@dataclass(frozen=True, eq=False, repr=False)
class TensorMap:
    """The kept entries of one tensor, as the product of one index set per dimension.

    Args:
        shape: the full shape.
        kept: for each dimension the kept indices in full coordinates (int64, ascending), or None when all are kept.

    Raises:
        MapError: the indices do not describe a non-empty part of `shape`.

    >>> import torch
    >>> from hfp.reconstruct import TensorMap
    >>> rows = TensorMap((4, 2), (torch.tensor([1, 3]), None))
    >>> rows
    TensorMap([4, 2] -> [2, 2], dim 0: 1 3)
    >>> rows.restrict(torch.arange(8).view(4, 2)).tolist()
    [[2, 3], [6, 7]]
    """

    shape: tuple[int, ...]
    kept: tuple[Tensor | None, ...]
    last_cut: int = field(init=False, repr=False)
    """This is the last dimension that loses indices, or -1 when none does."""
    _elsewhere: dict[torch.device, tuple[Tensor | None, ...]] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if len(self.kept) != len(self.shape):
            raise MapError(
                f"expected one entry of kept indices per dimension of {list(self.shape)}, got {len(self.kept)}"
            )
        for dim, (size, kept) in enumerate(zip(self.shape, self.kept, strict=True)):
            if kept is not None:
                _check_indices(kept, size, f"dimension {dim} of {list(self.shape)}")
        whole = [None if k is not None and k.numel() == n else k for n, k in zip(self.shape, self.kept, strict=True)]
        object.__setattr__(self, "kept", tuple(whole))
        object.__setattr__(self, "last_cut", max((dim for dim, k in enumerate(whole) if k is not None), default=-1))

    @classmethod
    def identity(cls, shape: tuple[int, ...]) -> TensorMap:
        """Return the map that keeps everything."""
        return cls(tuple(shape), (None,) * len(shape))

    @cached_property
    def compact_shape(self) -> tuple[int, ...]:
        """Return the shape of what is kept."""
        return tuple(n if k is None else k.numel() for n, k in zip(self.shape, self.kept, strict=True))

    @property
    def is_identity(self) -> bool:
        """Return whether everything is kept."""
        return self.last_cut < 0

    def restrict(self, full: Tensor) -> Tensor:
        """Return a copy of the kept entries of `full`."""
        if full.is_meta:
            return full.new_empty(self.compact_shape)
        part = full
        for dim, kept in enumerate(self.kept_on(full.device)):
            if kept is not None:
                part = part.index_select(dim, kept)
        return part.clone() if part is full else part

    def embed(self, sub: Tensor, into: Tensor) -> Tensor:
        """Return a copy of `into` whose kept entries come from `sub`, cast to `into`'s dtype and device."""
        full = into.detach().clone(memory_format=torch.contiguous_format)
        self.write(sub, full)
        return full

    def write(self, sub: Tensor, full: Tensor) -> None:
        """Put `sub` in the kept entries of `full`, in place."""
        sub = sub.detach().to(full)
        if not full.numel():
            return
        if self.is_identity:
            full.copy_(sub)
        elif not full.is_contiguous():
            full.copy_(self.embed(sub, full))
        else:
            put_rows(full.view(-1, self._width), self._rows(full.device), sub.reshape(-1, self._width))

    def add(self, sub: Tensor, into: Tensor, weight: float = 1.0) -> None:
        """Add `weight * sub` to the kept entries of `into`, in place.

        Raises:
            MapError: `into` holds integers, to which only a whole number of times can be added. Nothing was added then.
        """
        sub = sub.detach().to(into)
        if not (into.is_floating_point() or into.is_complex()):
            weight = _whole(weight, into.dtype)
        if self.last_cut < 0:
            into.add_(sub, alpha=weight)
        elif self.last_cut == 0:
            into.index_add_(0, self._indices(0, into.device), sub, alpha=weight)
        elif self._only_columns:
            into.index_add_(-1, self._indices(-1, into.device), sub * weight)
        elif not into.is_contiguous():
            whole = into.contiguous()
            self.add(sub, whole, weight)
            into.copy_(whole)
        elif into.device.type == "cpu" and self._width > 1:
            blocks = into.view(len(into), -1, self._width), sub.reshape(len(sub), -1, self._width)
            add_columns(*blocks, self.kept[0], self._columns, weight)
        else:
            add_rows(into.view(-1, self._width), self._rows(into.device), sub.reshape(-1, self._width), weight)

    def mask(self) -> Tensor:
        """Return a boolean tensor of the full shape that is True where an entry is kept."""
        mask = torch.ones((), dtype=torch.bool)
        for dim, kept in self._cuts():
            line = torch.zeros(self.shape[dim], dtype=torch.bool)
            line[kept] = True
            mask = mask & line.view([-1 if other == dim else 1 for other in range(len(self.shape))])
        return mask.expand(self.shape).clone()

    def then(self, later: TensorMap) -> TensorMap:
        """Return the map of cutting by `self` and then cutting the result by `later`.

        Raises:
            MapError: `later` is not a map of this map's compact shape.
        """
        if later.shape != self.compact_shape:
            raise MapError(f"expected a map of shape {list(self.compact_shape)}, got one of shape {list(later.shape)}")
        if self.is_identity:
            return later
        kept = tuple(
            last if first is None else first if last is None else first[last]
            for first, last in zip(self.kept, later.kept, strict=True)
        )
        return TensorMap(self.shape, kept)

    def __eq__(self, other: object) -> bool:
        """Return whether the shapes and the kept indices are the same."""
        if not isinstance(other, TensorMap):
            return NotImplemented
        return self.shape == other.shape and all(
            (a is None and b is None) or (a is not None and b is not None and torch.equal(a, b))
            for a, b in zip(self.kept, other.kept, strict=True)
        )

    __hash__ = None  # type: ignore[assignment]

    def __str__(self) -> str:
        """Return a line such as `[8, 3, 3, 3] -> [2, 3, 3, 3], dim 0: 1 5`."""
        if self.is_identity:
            return f"{list(self.shape)} whole"
        cuts = "; ".join(f"dim {dim}: {_preview(kept)}" for dim, kept in self._cuts())
        return f"{list(self.shape)} -> {list(self.compact_shape)}, {cuts}"

    def _indices(self, dim: int, device: torch.device) -> Tensor:
        kept = self.kept_on(device)[dim]
        assert kept is not None
        return kept

    def kept_on(self, device: torch.device) -> tuple[Tensor | None, ...]:
        """Return `kept` on a device; it is copied there once."""
        if device.type == "cpu":
            return self.kept
        if device not in self._elsewhere:
            self._elsewhere[device] = tuple(None if kept is None else kept.to(device) for kept in self.kept)
        if device.type == "cuda":  # another stream may have made these copies
            for kept in self._elsewhere[device]:
                if kept is not None:
                    kept.record_stream(torch.cuda.current_stream(device))
        return self._elsewhere[device]

    def __repr__(self) -> str:
        """Return a line such as `TensorMap([8, 3, 3, 3] -> [2, 3, 3, 3], dim 0: 1 5)`."""
        return f"TensorMap({self})"

    def _cuts(self) -> Iterator[tuple[int, Tensor]]:
        return ((dim, kept) for dim, kept in enumerate(self.kept) if kept is not None)

    @cached_property
    def _only_columns(self) -> bool:
        """Return whether the last dimension is cut and no other, as in a classifier that keeps all classes."""
        return self.last_cut == len(self.shape) - 1 and all(kept is None for kept in self.kept[:-1])

    @cached_property
    def _width(self) -> int:
        """Return how many entries lie behind the last dimension that loses indices: the width of a row."""
        return math.prod(self.shape[self.last_cut + 1 :])

    @cached_property
    def _columns(self) -> Tensor:
        """Return the kept positions in what lies behind the first dimension, seen as [columns, width]."""
        inner = slice(1, self.last_cut + 1)
        return positions(self.shape[inner], self.kept[inner])

    def _rows(self, device: torch.device) -> Tensor:
        """Return the kept rows of the full tensor seen as [rows, width]."""
        outer = slice(self.last_cut + 1)
        return positions(self.shape[outer], self.kept_on(device)[outer], device)


def positions(shape: tuple[int, ...], kept: tuple[Tensor | None, ...], device: torch.device | None = None) -> Tensor:
    """Return the flat, row-major positions of the kept entries of a tensor of `shape`.

    They are int64 [entries], ascending, and on `device`, where the kept indices are too.
    """
    lines = [
        torch.arange(size, device=device) if indices is None else indices
        for size, indices in zip(shape, kept, strict=True)
    ]
    found = lines[0] if lines else torch.zeros(1, dtype=torch.int64, device=device)
    for size, line in zip(shape[1:], lines[1:], strict=True):
        found = (found[:, None] * size + line).view(-1)
    return found


def checked_state(state: Any) -> State:
    """Return a state after checking that it maps names to tensors.

    Raises:
        MapError: it does not.
    """
    if not isinstance(state, Mapping):
        raise MapError(f"expected a state_dict, which maps names to tensors, found a {type(state).__name__}")
    others = [name for name, value in state.items() if not isinstance(value, Tensor)]
    if others:
        raise MapError(f"the state holds something other than tensors: {others[:4]}")
    return state


def _check_indices(kept: Any, size: int, where: str) -> None:
    if not isinstance(kept, Tensor):
        raise MapError(f"{where}: expected a tensor of indices or None, found a {type(kept).__name__}")
    if kept.dim() != 1 or kept.dtype != torch.int64:
        raise MapError(f"{where}: expected a vector of int64 indices, got {kept.dtype} of shape {list(kept.shape)}")
    if kept.numel() == 0:
        raise MapError(f"{where}: no index is kept; keep at least one")
    values = kept.numpy(force=True)
    if values[0] < 0 or values[-1] >= size or not (values[1:] > values[:-1]).all():
        raise MapError(f"{where}: expected ascending indices without repeats in [0, {size}), got {_preview(kept)}")


def _whole(weight: float, dtype: torch.dtype, where: str = "") -> int:
    if dtype is torch.bool or not float(weight).is_integer():
        raise MapError(f"{where}{weight} times a tensor of {dtype} can't be added; make it floating-point before")
    return int(weight)


def _preview(kept: Tensor) -> str:
    values = [str(i) for i in kept.tolist()]
    return " ".join(values if len(values) <= 8 else [*values[:7], "...", values[-1]])


@dataclass(frozen=True, eq=False, repr=False)
class IndexMap:
    """The entries of a full model's state that a compact model holds, and what else must change to build it.

    Args:
        tensors: a `TensorMap` for every key of the full `state_dict`, in its order: parameters and buffers.
        attributes: the plain attributes that surgery changed, with their values in the compact model, by module name.
        transient: a `TensorMap` for every buffer outside the state_dict (non-persistent) that surgery changed.

    >>> import torch
    >>> from hfp.reconstruct import Coupling
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 2))
    >>> coupling = Coupling.trace(model, torch.randn(2, 4))
    >>> index_map = coupling.index_map(coupling.plan({"0": [0, 2, 5]}))
    >>> index_map
    <IndexMap: 3 of 4 tensors cut by 1 set of kept channels; 23 of 44 entries kept (52.3 %)>
    >>> compact = index_map.restrict(model.state_dict())
    >>> full = index_map.embed(compact, into=model.state_dict())
    """

    tensors: Mapping[str, TensorMap]
    attributes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    transient: Mapping[str, TensorMap] = field(default_factory=dict)

    def __post_init__(self) -> None:
        attributes = {name: MappingProxyType(dict(changed)) for name, changed in self.attributes.items() if changed}
        object.__setattr__(self, "tensors", MappingProxyType(dict(self.tensors)))
        object.__setattr__(self, "attributes", MappingProxyType(attributes))
        object.__setattr__(self, "transient", MappingProxyType(dict(self.transient)))

    def __reduce__(self) -> tuple[Any, ...]:
        """Return what copies are made of, which `copy.deepcopy` and other processes get."""
        attributes = {name: dict(changed) for name, changed in self.attributes.items()}
        return type(self), (dict(self.tensors), attributes, dict(self.transient))

    @classmethod
    def identity(cls, model: nn.Module | State) -> IndexMap:
        """Return the map that keeps everything of a model, or of a state_dict.

        Raises:
            MapError: it is neither, or the state_dict holds something other than tensors.
        """
        state = checked_state(model.state_dict() if isinstance(model, nn.Module) else model)
        return cls({name: TensorMap.identity(tuple(tensor.shape)) for name, tensor in state.items()})

    @property
    def kept_entries(self) -> int:
        """Count the entries of the compact state, buffers included."""
        return sum(math.prod(tensor.compact_shape) for tensor in self.tensors.values())

    @property
    def full_entries(self) -> int:
        """Count the entries of the full state, buffers included."""
        return sum(math.prod(tensor.shape) for tensor in self.tensors.values())

    def restrict(self, full_state: State) -> dict[str, Tensor]:
        """Cut a full state to the compact one.

        Args:
            full_state: the full model's `state_dict`; it is not changed.

        Returns:
            A copy of the kept entries of every tensor.

        Raises:
            MapError: `full_state` has other keys or shapes than the full model of this map.
        """
        self.check_full(full_state)
        for device in {tensor.device for tensor in full_state.values()}:
            self._place(device)
        return {name: tensor.restrict(full_state[name].detach()) for name, tensor in self.tensors.items()}

    def embed(self, sub: State, into: State) -> dict[str, Tensor]:
        """Put a compact state back into a full one.

        Args:
            sub: the compact model's `state_dict`.
            into: a full state; it is not changed. Values are cast to its dtypes and devices.

        Returns:
            The full state whose kept entries come from `sub` and all others, bit for bit, from `into`.

        Raises:
            MapError: `sub` is not a compact state of this map, or `into` is not a full one.
        """
        self.check_compact(sub)
        self.check_full(into)
        return {name: tensor.embed(sub[name], into[name]) for name, tensor in self.tensors.items()}

    def add(self, sub: State, into: State, weight: float = 1.0) -> None:
        """Add `weight * sub` to the kept entries of every tensor of `into`, in place.

        Raises:
            MapError: `sub` is not a compact state of this map, or `into` is not a full one; or it holds integers, such
                as batch-norm's counts, and the weight is no whole number. Nothing was added then.
        """
        self.check_compact(sub)
        self.check_full(into)
        for name, value in into.items():
            if not (value.is_floating_point() or value.is_complex()):
                _whole(weight, value.dtype, f"{name}: ")
        for name, tensor in self.tensors.items():
            tensor.add(sub[name], into[name].detach(), weight)

    def masks(self) -> dict[str, Tensor]:
        """Return boolean tensors of the full shapes that are True where an entry is kept."""
        return {name: tensor.mask() for name, tensor in self.tensors.items()}

    def then(self, later: IndexMap) -> IndexMap:
        """Return the map of this pruning followed by `later`, which pruned the compact model again.

        Raises:
            MapError: `later` is not a map of this map's compact model.
        """
        if set(later.tensors) != set(self.tensors):
            raise MapError(f"these maps are of different models: {_difference(later.tensors, self.tensors)}")
        names = self.attributes.keys() | later.attributes.keys()
        return IndexMap(
            {name: _then(name, tensor, later.tensors[name]) for name, tensor in self.tensors.items()},
            {name: {**self.attributes.get(name, {}), **later.attributes.get(name, {})} for name in sorted(names)},
            {
                name: _then(name, self.transient[name], later.transient[name])
                if name in self.transient and name in later.transient
                else (self.transient.get(name) or later.transient[name])
                for name in sorted(self.transient.keys() | later.transient.keys())
            },
        )

    def __eq__(self, other: object) -> bool:
        """Return whether the tensors keep the same indices and the changed attributes are the same."""
        if not isinstance(other, IndexMap):
            return NotImplemented
        return (
            dict(self.tensors) == dict(other.tensors)
            and dict(self.attributes) == dict(other.attributes)
            and dict(self.transient) == dict(other.transient)
        )

    __hash__ = None  # type: ignore[assignment]

    def __str__(self) -> str:
        """Return one line per tensor that lost entries and per module whose attributes changed, and the total."""
        cut = self._cut()
        kept = self.kept_entries / max(self.full_entries, 1)
        lines = [
            f"IndexMap: {self.kept_entries:,} of {self.full_entries:,} entries kept ({kept:.1%}), "
            f"{len(cut)} of {len(self.tensors)} tensors cut"
        ]
        lines += [f"  {name}: {tensor}" for name, tensor in cut.items()]
        for name, changed in self.attributes.items():
            lines.append(f"  {name or '(model)'}: " + ", ".join(f"{key} = {value!r}" for key, value in changed.items()))
        return "\n".join(lines)

    def __repr__(self) -> str:
        """Return one line, however large the model is; `str` lists every tensor that lost entries."""
        sets = {(k.numel(), k.numpy().tobytes()) for t in self._cut().values() for k in t.kept if k is not None}
        by = f" by {counted(len(sets), 'set')} of kept channels" if sets else ""
        return f"<IndexMap: {len(self._cut())} of {counted(len(self.tensors), 'tensor')} cut{by}; {self.entries_kept}>"

    def _repr_html_(self) -> str:
        rows = [
            (
                name,
                list(tensor.shape),
                list(tensor.compact_shape),
                share(*map(math.prod, (tensor.compact_shape, tensor.shape))),
            )
            for name, tensor in self._cut().items()
        ]
        return html_table(f"IndexMap: {self.entries_kept}", ("tensor", "full shape", "kept shape", "kept"), rows)

    @property
    def entries_kept(self) -> str:
        """Return how many entries are kept, in words."""
        kept, full = self.kept_entries, self.full_entries
        return f"{kept:,} of {full:,} entries kept ({share(kept, full)})"

    def _cut(self) -> dict[str, TensorMap]:
        """Return the tensors that lost entries."""
        return {name: t for name, t in {**self.tensors, **self.transient}.items() if not t.is_identity}

    def check_full(self, state: State) -> None:
        """Raise a `MapError` unless `state` has the keys and shapes of the full model."""
        self._check(state, "full", self._full_shapes)

    def check_compact(self, state: State) -> None:
        """Raise a `MapError` unless `state` has the keys and shapes of the compact model."""
        self._check(state, "compact", self._compact_shapes)

    def check_transient(self, model: nn.Module) -> None:
        """Raise a `MapError` unless `model` has the buffers outside its state_dict that this map cuts."""
        shapes = {name: tuple(buffer.shape) for name, buffer in model.named_buffers(remove_duplicate=False)}
        for name, tensor in self.transient.items():
            if name in self.tensors or shapes.get(name) != tensor.shape:
                raise MapError(
                    f"{name}: expected a non-persistent buffer of shape {list(tensor.shape)}, "
                    f"got {shapes.get(name, 'none')}"
                )

    @cached_property
    def _full_shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tensor.shape for name, tensor in self.tensors.items()}

    @cached_property
    def _compact_shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tensor.compact_shape for name, tensor in self.tensors.items()}

    def _place(self, device: torch.device) -> None:
        """Copy all kept indices to a device in one transfer."""
        waiting = [tensor for tensor in self.tensors.values() if device not in tensor._elsewhere]
        lines = {id(kept): kept for tensor in waiting for kept in tensor.kept if kept is not None}
        if device.type == "cpu" or not lines:
            return
        parts = torch.cat(list(lines.values())).to(device).split([len(kept) for kept in lines.values()])
        there = dict(zip(lines, parts, strict=True))
        for tensor in waiting:
            tensor._elsewhere[device] = tuple(None if kept is None else there[id(kept)] for kept in tensor.kept)

    def _check(self, state: State, kind: str, shapes: Mapping[str, tuple[int, ...]]) -> None:
        checked_state(state)
        if state.keys() != shapes.keys():
            raise MapError(f"this is not the {kind} state of this map: {_difference(state, shapes)}")
        for name, shape in shapes.items():
            if state[name].shape != shape:
                raise MapError(f"{name}: expected the {kind} shape {list(shape)}, got {list(state[name].shape)}")


def _then(name: str, first: TensorMap, later: TensorMap) -> TensorMap:
    try:
        return first.then(later)
    except MapError as error:
        raise MapError(f"{name}: {error}") from None


def _difference(found: Mapping[str, Any], expected: Mapping[str, Any]) -> str:
    missing = [name for name in expected if name not in found]
    surplus = [name for name in found if name not in expected]
    parts = [
        f"{kind} {', '.join(names[:4])}{', ...' if len(names) > 4 else ''}"
        for kind, names in (("missing", missing), ("unexpected", surplus))
        if names
    ]
    return "; ".join(parts)
