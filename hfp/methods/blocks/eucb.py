"""E-UCB: a bandit that draws ratios from an interval and divides it more finely where rewards are high.

Source: FedMP, ICDE 2022.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Bandit:
    """A division of the interval of ratios into leaves, and the rewards of the ratios drawn so far.

    Args:
        leaves: the parts ``[low, high)`` of the interval.
        discount: a pull counts this to the power of its age in pulls.
        finest: a leaf that is wider than this is divided where a ratio is drawn from it.
        pulls: the pulls so far as (ratio, reward), oldest first.
    """

    leaves: tuple[tuple[float, float], ...]
    discount: float
    finest: float
    pulls: tuple[tuple[float, float], ...] = ()

    def draw(self, generator: torch.Generator) -> float:
        """Draw a ratio uniformly from the leaf with the highest index; the lowest of several such leaves is taken."""
        low, high = max(self.leaves, key=self.index)
        return low + (high - low) * float(torch.rand((), generator=generator, dtype=torch.float64))

    def index(self, leaf: tuple[float, float]) -> float:
        """Compute ``R(P) + sqrt(2 ln ΣN / N(P))`` of a leaf ``P``, infinite where nothing was drawn from it.

        ``N`` are the discounted counts of pulls, and ``R`` are the discounted mean rewards.
        """
        low, high = leaf
        ages = range(len(self.pulls) - 1, -1, -1)
        weighed = [(self.discount**age, *pull) for age, pull in zip(ages, self.pulls, strict=True)]
        inside = [(weight, reward) for weight, ratio, reward in weighed if low <= ratio < high]
        count = sum(weight for weight, _ in inside)
        if not count:  # nothing was drawn from it, or so long ago that it counts nothing any more
            return math.inf
        total = sum(weight for weight, _, _ in weighed)
        mean = sum(weight * reward for weight, reward in inside) / count
        return mean + math.sqrt(2 * max(math.log(total), 0.0) / count)

    def learn(self, ratio: float, reward: float) -> Bandit:
        """Return the bandit after a pull of `ratio` that gave `reward`."""
        leaves: list[tuple[float, float]] = []
        for low, high in self.leaves:
            cut = low < ratio < high and high - low > self.finest
            leaves += [(low, ratio), (ratio, high)] if cut else [(low, high)]
        return dataclasses.replace(self, leaves=tuple(leaves), pulls=(*self.pulls, (ratio, reward)))
