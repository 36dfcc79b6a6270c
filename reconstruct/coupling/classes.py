"""Work out which labels of a trace stay or go together, and which cannot go."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from hfp.reconstruct.coupling.rules.labels import Array, JoinedDimension, Labels, Line


@dataclass(frozen=True)
class Classes:
    """A solved trace.

    Args:
        of: the class of every label, `[labels]`. A class is named by one of its labels.
        texts: the reasons for which a class cannot be removed.
        why: the number of a class's reason in `texts`; it is 0 where the class can be removed.
    """

    of: Array
    why: Array
    texts: tuple[str, ...]

    def reason(self, line: Line) -> str | None:
        """Return why a dimension keeps all its indices; None when it can lose some."""
        if line is None:
            return "it has a fixed size"
        why = self.why[self.of[line]]
        return None if (why == 0).any() else self.texts[why[0]]


def solve(labels: Labels, fixed: Iterable[tuple[Array, str]] = (), outer_first: bool | None = None) -> Classes:
    """Work out the classes that follow from a trace.

    Args:
        labels: what the trace learned.
        fixed: further lines that cannot lose anything, with the reason.
        outer_first: which factor of a reshaped dimension to prefer. None, the default, takes what the trace suggests.
    """
    solver = _Solver(labels, fixed)
    undecided = [product for product in labels.products if not solver.settle_forced(product)]
    for product in undecided:
        solver.settle(product, product.outer_first if outer_first is None else outer_first)
    return solver.classes()


class _Solver:
    def __init__(self, labels: Labels, fixed: Iterable[tuple[Array, str]]) -> None:
        self._parent = _components(labels.count, labels.equal)
        self._reason = np.zeros(labels.count, dtype=np.int64)  # an index into the texts, where 0 means removable
        self._texts: list[str] = [""]
        for line, reason in [*labels.fixed, *fixed]:
            self._fix(line, reason)

    def settle_forced(self, product: JoinedDimension) -> bool:
        """Settle a product that leaves no choice, and return whether it did."""
        grid = self._roots(product.whole).reshape(product.sizes)
        if sum(self._outcome(grid, product, index)[0] > 1 for index in range(len(product.sizes))) > 1:
            return False
        self.settle(product, True)
        return True

    def settle(self, product: JoinedDimension, outer_first: bool) -> None:
        """Choose the one factor that may lose indices, and fix the others."""
        grid = self._roots(product.whole).reshape(product.sizes)
        options = [self._outcome(grid, product, index) for index in range(len(product.sizes))]
        shares = {index: count / product.sizes[index] for index, (count, _) in enumerate(options) if count > 1}
        good = [index for index, share in shares.items() if share == max(shares.values())]
        chosen = None if not good else good[0] if outer_first else good[-1]
        reason = f"{product.where}: reshaped together with another dimension that is pruned"
        if chosen is None:
            latest = self._texts[max(text for _, text in options)]
            reason = latest or f"{product.where}: two reshapes leave nothing in common"
        for index, factor in enumerate(product.factors):
            if index != chosen and factor is not None:
                self._fix(factor, reason)
        if chosen is None:
            self._fix(product.whole, reason)
        else:
            self._union(_pairs(grid, self._roots(_line(product, chosen)), chosen))

    def classes(self) -> Classes:
        """Return what has been worked out."""
        of = self._roots(np.arange(len(self._parent)))
        return Classes(of, self._reason, tuple(self._texts))

    def _outcome(self, grid: Array, product: JoinedDimension, index: int) -> tuple[int, int]:
        """Return how many removable classes this factor leaves if chosen, and a reason's number if some can't go."""
        factor = product.factors[index]
        if factor is None:
            return 0, 0
        roots = self._roots(factor)
        if self._reason[roots].all():
            return 0, int(self._reason[roots].max())
        pairs = _pairs(grid, roots, index)
        names, compact = np.unique(pairs, return_inverse=True)
        compact = compact.reshape(pairs.shape)
        component = _components(len(names), [(compact[0], compact[1])])
        reasons = self._reason[names]
        alive = np.setdiff1d(component[np.searchsorted(names, roots)], component[reasons > 0])
        return len(alive), int(reasons.max())

    def _roots(self, line: Array) -> Array:
        roots = self._parent[line]
        while not np.array_equal(roots, above := self._parent[roots]):
            roots = above
        return roots

    def _union(self, pairs: Array) -> None:
        first, second = pairs
        while True:
            first, second = self._roots(first), self._roots(second)
            differ = first != second
            if not differ.any():
                return
            first, second = first[differ], second[differ]
            high = np.maximum(first, second)
            np.minimum.at(self._parent, high, np.minimum(first, second))
            high = high[self._reason[high] > 0]
            self._mark(self._roots(high), self._reason[high])

    def _fix(self, line: Array, reason: str) -> None:
        self._texts.append(reason)
        roots = self._roots(line)
        self._mark(roots, np.full(len(roots), len(self._texts) - 1))

    def _mark(self, roots: Array, texts: Array) -> None:
        free = self._reason[roots] == 0
        self._reason[roots[free]] = texts[free]


def _line(product: JoinedDimension, index: int) -> Array:
    line = product.factors[index]
    assert line is not None
    return line


def _pairs(grid: Array, roots: Array, index: int) -> Array:
    """Return the distinct pairs (class of the whole, class of the factor), `[2, pairs]`.

    Factor `index` is the one that is chosen.
    """
    shape = [-1 if dim == index else 1 for dim in range(grid.ndim)]
    factor = np.broadcast_to(roots.reshape(shape), grid.shape)
    return np.unique(np.stack([grid.reshape(-1), factor.reshape(-1)]), axis=1)


def _components(count: int, equal: Sequence[tuple[Array, Array]]) -> Array:
    """Return the smallest label in the connected component of each of `count` labels."""
    parent = np.arange(count)
    if not equal:
        return parent
    first = np.concatenate([pair[0] for pair in equal])
    second = np.concatenate([pair[1] for pair in equal])
    while True:
        first, second = parent[first], parent[second]
        open_ = first != second
        if not open_.any():
            return parent
        first, second = first[open_], second[open_]
        np.minimum.at(parent, np.maximum(first, second), np.minimum(first, second))
        while not np.array_equal(parent, parent[parent]):
            parent = parent[parent]
