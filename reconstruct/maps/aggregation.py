"""Merge compact states into one full state, one client at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from hfp.reconstruct.errors import MapError
from hfp.reconstruct.maps.coverage import Coverage
from hfp.reconstruct.maps.index_map import IndexMap, checked_state

AggregationRule = Callable[[Tensor, Tensor, Tensor, float], Tensor]
"""A rule returns the new value of a tensor.

It takes the global value, the weighted sum of the clients' values, the weight of the clients that held each entry, and
the weight of all clients. All tensors broadcast to the full shape. The sum is zero where nobody held the entry, and a
rule may write into it.
"""


def fill_with_global(full: Tensor, total: Tensor, held: Tensor, weight: float) -> Tensor:
    """Return the weighted mean over all clients; those that did not hold an entry count with the global value."""
    missing = 1 - held / weight
    return (full * missing).masked_fill_(missing == 0, 0).add_(total, alpha=1 / weight)  # infinity times 0 is no number


def mean_over_holders(full: Tensor, total: Tensor, held: Tensor, weight: float) -> Tensor:
    """Return the weighted mean over the clients that held the entry."""
    unheld = held == 0
    mean = total.mul_(held.reciprocal().masked_fill_(unheld, 0))
    return torch.where(unheld, full, mean, out=mean)


AGGREGATION_RULES: Mapping[str, AggregationRule] = {"fill": fill_with_global, "holders": mean_over_holders}


class Aggregator:
    """Take the weighted aggregate of compact states, one client at a time.

    Let `w` be the global state, `p_k > 0` the weight of client `k`, `w_k` its state and `S_k` its kept entries. There
    are two rules:

    - "fill" (CA-HFP, arXiv 2603.12591) gives `Σ p_k w̃_k / Σ p_k`, where `w̃_k` is `w_k` on `S_k` and `w` elsewhere.
      This equals `w + Σ p_k (w_k − w[S_k]) / Σ p_k`.
    - "holders" (HeteroFL, arXiv 2010.01264) gives, for every entry, the weighted mean over the clients that held it.

    Entries that nobody held keep their value. Weights need not sum to one, so that sample counts will do. Sums are
    taken in float32 (float64 for float64 and integer tensors), on the devices of `w`. Integer tensors are rounded, and
    every tensor keeps its dtype. The aggregator keeps one model in memory, whatever the number of clients, and the
    index maps of up to 64 of them.

    Args:
        full_state: the global state `w`. It is not changed, and must not be changed before `result()`.
        rule: a name in `AGGREGATION_RULES`, "fill" by default.

    Raises:
        MapError: the rule is unknown, or `full_state` is no state of tensors.

    >>> import torch
    >>> from hfp.reconstruct import Aggregator, IndexMap
    >>> state = {"weight": torch.zeros(3)}
    >>> total = Aggregator(state, rule="holders")
    >>> total.add({"weight": torch.ones(3)}, IndexMap.identity(state), weight=20)
    >>> total.result()
    {'weight': tensor([1., 1., 1.])}
    """

    def __init__(self, full_state: Mapping[str, Tensor], rule: str = "fill") -> None:
        if rule not in AGGREGATION_RULES:
            raise MapError(f"unknown aggregation rule {rule!r}; known: {', '.join(AGGREGATION_RULES)}")
        self._rule = AGGREGATION_RULES[rule]
        self._full = {name: tensor.detach() for name, tensor in checked_state(full_state).items()}
        self._sums: dict[str, Tensor] = {}
        self._finished = False
        device = next((tensor.device for tensor in self._full.values()), torch.device("cpu"))
        self._coverage = Coverage({name: tuple(tensor.shape) for name, tensor in self._full.items()}, device)
        self._weight = 0.0

    def add(self, sub_state: Mapping[str, Tensor], index_map: IndexMap, weight: float) -> None:
        """Take one client's compact state.

        Raises:
            MapError: the weight is not positive and finite, the map is of another model, the state is of another map,
                or the aggregation is finished.
        """
        self._check_unfinished()
        try:
            share = math.nan if isinstance(weight, str | bool) else float(weight)
        except (TypeError, ValueError, OverflowError):
            share = math.nan
        if not (share > 0 and math.isfinite(share)):
            raise MapError(f"expected a positive, finite client weight, got {weight!r}")
        index_map.check_full(self._full)
        index_map.check_compact(sub_state)
        if not self._sums:
            self._sums = {
                name: torch.zeros(full.shape, dtype=_sum_dtype(full.dtype), device=full.device)
                for name, full in self._full.items()
            }
        for name, tensor in index_map.tensors.items():
            tensor.add(sub_state[name], self._sums[name], share)
        self._coverage.add(index_map.tensors, share)
        self._weight += share

    def result(self) -> dict[str, Tensor]:
        """Return the new full state. More clients may be added afterwards.

        Raises:
            MapError: no client was added, or the aggregation is finished.
        """
        held = self._held()
        return {name: self._merged(name, total.clone(), held[name]) for name, total in self._sums.items()}

    def finish(self) -> dict[str, Tensor]:
        """Return what `result` does and end the aggregation, so that no second model is held in memory.

        Raises:
            MapError: no client was added, or the aggregation is finished already.
        """
        held, self._finished = self._held(), True
        return {name: self._merged(name, self._sums.pop(name), held[name]) for name in self._full}

    def _held(self) -> dict[str, Tensor]:
        self._check_unfinished()
        if not self._sums:
            raise MapError("nothing to aggregate: no client was added")
        return self._coverage.held()

    def _check_unfinished(self) -> None:
        if self._finished:
            raise MapError("the aggregation is finished: make another Aggregator for more clients")

    def _merged(self, name: str, total: Tensor, held: Tensor) -> Tensor:
        full = self._full[name]
        merged = self._rule(full.to(total.dtype), total, held.to(total), self._weight)
        exact = full.is_floating_point() or full.is_complex()
        return (merged if exact else merged.round_()).to(full.dtype)


def _sum_dtype(dtype: torch.dtype) -> torch.dtype:
    if dtype.is_floating_point or dtype.is_complex:
        return torch.promote_types(dtype, torch.float32)
    return torch.float64
