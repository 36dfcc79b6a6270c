"""Merge compact states into one full state, one client at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from hfp.reconstruct.errors import MapError
from hfp.reconstruct.index_map import IndexMap


class Rule(Protocol):
    """By what the weighted sum of changes is divided: a scalar, or one number per entry."""

    def add(self, name: str, index_map: IndexMap, weight: float) -> None:
        """Take note that a client of this weight held these entries of tensor `name`."""

    def denominator(self, name: str) -> Tensor:
        """Broadcastable to the tensor; entries nobody held may have any positive value."""


class FillWithGlobal:
    """Entries a client did not hold count as unchanged: divide by the weight of all clients."""

    def __init__(self) -> None:
        self._total: dict[str, float] = {}

    def add(self, name: str, index_map: IndexMap, weight: float) -> None:
        """See `Rule`."""
        self._total[name] = self._total.get(name, 0.0) + weight

    def denominator(self, name: str) -> Tensor:
        """See `Rule`."""
        return torch.tensor(self._total[name], dtype=torch.float64)


class MeanOverHolders:
    """Divide by the weight of the clients that held the entry."""

    def __init__(self) -> None:
        self._held: dict[str, Tensor] = {}

    def add(self, name: str, index_map: IndexMap, weight: float) -> None:
        """See `Rule`."""
        tensor = index_map.tensors[name]
        if name not in self._held:
            self._held[name] = torch.zeros(tensor.shape, dtype=torch.float32)
        tensor.add(torch.ones(()).expand(tensor.compact_shape), self._held[name], weight)

    def denominator(self, name: str) -> Tensor:
        """See `Rule`."""
        held = self._held[name]
        return torch.where(held > 0, held, torch.ones_like(held))


RULES: dict[str, type[FillWithGlobal] | type[MeanOverHolders]] = {"fill": FillWithGlobal, "holders": MeanOverHolders}


class Aggregator:
    """Streaming weighted aggregation of compact states.

    With global state `w`, clients `k` of weight `p_k > 0` and kept entries `S_k`, `result()` is

    - rule "fill" (CA-HFP, arXiv 2603.12591): `w + Σ p_k (w_k − w[S_k]) / Σ p_k`, entries a client did not hold
      being filled with the global value;
    - rule "holders" (HeteroFL, arXiv 2010.01264): `w + Σ p_k (w_k − w[S_k]) / Σ_{k holds the entry} p_k`, the
      weighted mean over those that hold the entry.

    Entries that nobody held keep their value bit for bit. Weights need not sum to one. Integer buffers are averaged in
    float64 and rounded; every tensor keeps its dtype. Memory is one model (rule "holders": and the weights held),
    whatever the number of clients.

    Args:
        full_state: the global state `w`; not changed, and not to be changed before `result()`.
        rule: "fill" or "holders".

    Raises:
        MapError: unknown rule.
    """

    def __init__(self, full_state: Mapping[str, Tensor], rule: str = "fill") -> None:
        if rule not in RULES:
            raise MapError(f"unknown aggregation rule {rule!r}; known: {', '.join(RULES)}")
        self._full = {name: tensor.detach() for name, tensor in full_state.items()}
        self._rule: Rule = RULES[rule]()
        self._identity = IndexMap.identity(self._full)
        self._change: dict[str, Tensor] = {}

    def add(self, sub_state: Mapping[str, Tensor], index_map: IndexMap, weight: float) -> None:
        """Take one client's compact state.

        Raises:
            MapError: the weight is not positive and finite, the map is of another model, or the state of another map.
        """
        if not 0 < weight < float("inf"):
            raise MapError(f"expected a positive, finite client weight, got {weight}")
        index_map.check_full(self._full)
        index_map.check_compact(sub_state)
        for name, tensor in index_map.tensors.items():
            full = self._full[name]
            dtype = _accumulation_dtype(full)
            if name not in self._change:
                self._change[name] = torch.zeros(full.shape, dtype=dtype, device=full.device)
            change = sub_state[name].detach().to(device=full.device, dtype=dtype) - tensor.restrict(full).to(dtype)
            tensor.add(change, self._change[name], weight)
            self._rule.add(name, index_map, weight)

    def result(self) -> dict[str, Tensor]:
        """The new full state.

        Raises:
            MapError: no client was added.
        """
        if not self._change:
            raise MapError("nothing to aggregate: no client was added")
        return {name: self._merged(name) for name in self._full}

    def _merged(self, name: str) -> Tensor:
        full, change = self._full[name], self._change[name]
        change = change / self._rule.denominator(name).to(change)
        if not full.is_floating_point():
            change = change.round_()
        return (full.to(change.dtype) + change).to(full.dtype)


def _accumulation_dtype(full: Tensor) -> torch.dtype:
    if not full.is_floating_point():
        return torch.float64
    return torch.promote_types(full.dtype, torch.float32)
