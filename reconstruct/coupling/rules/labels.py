"""Record what a trace learns about the indices of a model's tensors: which of them can only go together.

Every index along every dimension carries a label, which is an integer. Operations say that labels are equal, that they
cannot be removed, or that a dimension is a product of others (a reshape). `hfp.reconstruct.coupling.classes` works out
what follows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.int64]
Line = Array | None
"""A line holds the labels along one dimension, `[size]`; it is None where no index can be removed."""
Lines = tuple[Line, ...]
"""A tensor has one line per dimension."""


@dataclass(frozen=True)
class JoinedDimension:
    """A dimension that is read, row-major, as several: an index goes when an index of any of its factors goes.

    Args:
        whole: its labels, `[prod(sizes)]`.
        factors: one line for each of `sizes`.
        sizes: the sizes of the factors.
        where: what ties them, for reports.
        outer_first: which factor is to stay removable where several could be: the slowest (True) or the fastest.
    """

    whole: Array
    factors: Lines
    sizes: tuple[int, ...]
    where: str
    outer_first: bool


@dataclass
class Labels:
    """The labels handed out so far and the facts about them."""

    count: int = 0
    equal: list[tuple[Array, Array]] = field(default_factory=list)
    fixed: list[tuple[Array, str]] = field(default_factory=list)
    products: list[JoinedDimension] = field(default_factory=list)
    aligned: list[tuple[Array, int]] = field(default_factory=list)
    heads: list[Array] = field(default_factory=list)
    _made: dict[int, tuple[Array, Lines, tuple[int, ...]]] = field(default_factory=dict)

    def fresh(self, size: int) -> Line:
        """Return the labels of a new dimension; one of size 1 has nothing to remove."""
        return None if size < 2 else self.numbered(size)

    def numbered(self, size: int) -> Array:
        """Return `size` new labels, also where the size is 1."""
        self.count += size
        return np.arange(self.count - size, self.count)

    def unify(self, first: Line, second: Line, reason: str) -> Line:
        """Return the line of two dimensions that lose the same indices.

        `reason` is kept where one of them cannot lose any.
        """
        if first is None or second is None:
            self.fix(first, reason)
            self.fix(second, reason)
            return None
        if first is not second and not np.array_equal(first, second):
            self.equal.append((first, second))
        return first

    def fix(self, line: Line, reason: str) -> None:
        """Note that nothing of this dimension can be removed."""
        if line is not None and len(line):
            self.fixed.append((line, reason))

    def attend(self, line: Line) -> None:
        """Note that this dimension is the heads of attention."""
        if line is not None:
            self.heads.append(line)

    def align(self, line: Line, multiple: int) -> None:
        """Note that a dimension can only lose a multiple of so many indices."""
        if line is not None and multiple > 1 and len(line) % multiple == 0:
            self.aligned.append((line, multiple))

    def merge(self, factors: Sequence[Line], sizes: Sequence[int], where: str) -> Line:
        """Return the line of the dimension that flattening `factors` of `sizes` makes."""
        free = [(index, factor) for index, factor in enumerate(factors) if factor is not None]
        if not free:
            return None
        if len(free) > 1:
            whole = self.numbered(math.prod(sizes))
            self.products.append(JoinedDimension(whole, tuple(factors), tuple(sizes), where, True))
        else:
            place, line = free[0]
            shape = [size if index == place else 1 for index, size in enumerate(sizes)]
            whole = np.broadcast_to(line.reshape(shape), tuple(sizes)).reshape(-1)
        self._made[id(whole)] = (whole, tuple(factors), tuple(sizes))
        return whole

    def split(self, whole: Line, sizes: Sequence[int], where: str, rigid: Sequence[int] = ()) -> Lines:
        """Return the lines of the factors that a dimension is read as; those in `rigid` cannot lose anything."""
        if whole is None:
            return (None,) * len(sizes)
        _, made, before = self._made.get(id(whole), (whole, (), ()))
        if before == tuple(sizes) and not any(made[index] is not None for index in rigid):
            return made
        wide = [index for index, size in enumerate(sizes) if size > 1]
        if len(wide) == 1 and wide[0] not in rigid:
            return tuple(whole if index == wide[0] else None for index in range(len(sizes)))
        factors = tuple(None if index in rigid else self.fresh(size) for index, size in enumerate(sizes))
        self.products.append(JoinedDimension(whole, factors, tuple(sizes), where, True))
        return factors

    def is_factor(self, line: Line) -> bool:
        """Return whether a dimension came out of a reshape together with others."""
        return line is not None and any(line is factor for product in self.products for factor in product.factors)

    def tie(self, whole: Line, factors: Lines, sizes: Sequence[int], where: str, outer_first: bool) -> None:
        """Note that an existing dimension is the product of existing factors."""
        wide = [(factor, size) for factor, size in zip(factors, sizes, strict=True) if size > 1]
        if whole is None:
            for factor, _ in wide:
                self.fix(factor, f"{where}: its channels come from a dimension of fixed size")
        elif len(wide) == 1:
            self.unify(whole, wide[0][0], f"{where}: its channels come in a fixed number")
        else:
            self.products.append(JoinedDimension(whole, factors, tuple(sizes), where, outer_first))
