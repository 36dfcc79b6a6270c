"""E-UCB: a bandit over an interval of ratios, which it cuts finer where it pays (FedMP, ICDE 2022)."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Bandit:
    """Leaves ``[low, high)`` of a tree over the ratios, and the pulls so far as (ratio, reward), oldest first.

    A pull counts `discount` to the power of its age in pulls. A leaf wider than `finest` is cut where it is pulled.
    """

    leaves: tuple[tuple[float, float], ...]
    discount: float
    finest: float
    pulls: tuple[tuple[float, float], ...] = ()

    def draw(self, generator: torch.Generator) -> float:
        """A ratio, uniform in the leaf of the highest index; of equal ones the lowest."""
        low, high = max(self.leaves, key=self.index)
        return low + (high - low) * float(torch.rand((), generator=generator, dtype=torch.float64))

    def index(self, leaf: tuple[float, float]) -> float:
        """``R(P) + sqrt(2 ln ΣN / N(P))``, discounted counts ``N`` and mean rewards ``R``; infinite if never pulled."""
        low, high = leaf
        ages = range(len(self.pulls) - 1, -1, -1)
        weighed = [(self.discount**age, *pull) for age, pull in zip(ages, self.pulls, strict=True)]
        inside = [(weight, reward) for weight, ratio, reward in weighed if low <= ratio < high]
        count = sum(weight for weight, _ in inside)
        if not inside:
            return math.inf
        total = sum(weight for weight, _, _ in weighed)
        mean = sum(weight * reward for weight, reward in inside) / count
        return mean + math.sqrt(2 * max(math.log(total), 0.0) / count)

    def learn(self, ratio: float, reward: float) -> Bandit:
        """The bandit after a pull."""
        leaves: list[tuple[float, float]] = []
        for low, high in self.leaves:
            cut = low < ratio < high and high - low > self.finest
            leaves += [(low, ratio), (ratio, high)] if cut else [(low, high)]
        return dataclasses.replace(self, leaves=tuple(leaves), pulls=(*self.pulls, (ratio, reward)))
