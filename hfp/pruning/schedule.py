"""In which order the channels of a model go."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from numbers import Integral

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hfp.errors import InputError
from hfp.pruning.choices import RANKINGS

Kept = Mapping[str, Sequence[int]]
"""Coupled group -> the channels that are left, ascending; a group that is not named keeps all."""


@dataclass(frozen=True)
class RankingRules:
    """What limits a plan.

    Args:
        ranking: "layer" (every group loses the same share), "global" (the lowest scores go first, wherever they are),
            "isomorphic" (groups of one structure are ranked together, and every structure loses the same share; Fang et
            al., ECCV 2024, arXiv 2407.04616) or "measured" (the lowest prices of `hfp.pruning.measuring` go first).
        round_to: every layer that loses channels is left with a multiple of this many; None allows any number.
        min_channels: how many channels every layer keeps at least.

    Raises:
        InputError: a ranking that does not exist, or a number that is no whole number of at least 1.
    """

    ranking: str = "layer"
    round_to: int | None = None
    min_channels: int = 1

    def __post_init__(self) -> None:
        if self.ranking not in RANKINGS:
            raise InputError(f"ranking is one of {', '.join(RANKINGS)}, not {self.ranking!r}")
        numbers = {"round_to": self.round_to, "min_channels": self.min_channels}
        for name, value in numbers.items():
            if name == "round_to" and value is None:
                continue
            if not isinstance(value, Integral) or isinstance(value, bool) or int(value) < 1:
                raise InputError(f"{name} is a whole number of channels, at least 1, not {value!r}")
            object.__setattr__(self, name, int(value))  # NumPy's numbers may be too small to count on from


@dataclass(frozen=True)
class Earlier:
    """What earlier steps left of the full model. Groups that are not named have all of their channels.

    Args:
        sizes: group -> how many channels it has in the full model.
        left: group -> how many of them are left. It may be a fraction, where a group's channels are no longer the same
            outputs of a layer.
    """

    sizes: Mapping[str, int] = field(default_factory=dict)
    left: Mapping[str, float] = field(default_factory=dict)

    @property
    def ratio(self) -> float:
        """The share of all groups' channels that is gone."""
        return 1 - sum(self.left.values()) / sum(self.sizes.values()) if self.sizes else 0.0

    def then(self, sizes: Mapping[str, int], kept: Kept) -> Earlier:
        """What is left after one more step.

        Args:
            sizes: group -> how many channels it had before that step.
            kept: which of them the step keeps.
        """
        left = {name: self.left.get(name, size) * len(kept[name]) / size for name, size in sizes.items()}
        return Earlier({**sizes, **self.sizes}, {**self.left, **left})


@dataclass(frozen=True)
class Bundle:
    """Coupled groups that lose the same share of their channels, level by level.

    A bundle is cut into as many equal parts as all of its groups allow. Its level is the number of parts that are gone.

    Args:
        scores: group -> score of every channel; the lowest are removed first.
        widths: group -> how many outputs of a layer one of its channels is, for each layer that it reaches.
        sizes: how many channels of a group may be left; any number where there is none of its name.
        structure: is equal for bundles whose channels run through layers of the same kinds, in the same order.
    """

    scores: Mapping[str, Tensor]
    widths: Mapping[str, tuple[int, ...]]
    sizes: Mapping[str, Collection[int]] = field(default_factory=dict)
    structure: Hashable = None

    @cached_property
    def steps(self) -> int:
        """The number of equal parts that all groups can be cut into."""
        return math.gcd(*self._sizes.values())

    @cached_property
    def _sizes(self) -> dict[str, int]:
        return {name: len(scores) for name, scores in self.scores.items()}

    @cached_property
    def _ranked(self) -> dict[str, NDArray[np.int64]]:
        """The channels of every group, the one to be removed first at the beginning."""
        return {name: torch.argsort(scores, stable=True).cpu().numpy() for name, scores in self.scores.items()}

    def levels(self, rules: RankingRules) -> list[int]:
        """The levels that the rules allow, ascending from 0."""
        levels = np.arange(1, self.steps)
        allowed = np.ones(len(levels), dtype=bool)
        for name, size in self._sizes.items():
            for width in self.widths[name]:
                left = (size - levels * (size // self.steps)) * width
                round_to = min(rules.round_to or 1, size * width + 1)  # NumPy's whole numbers have a bound
                allowed &= (left >= rules.min_channels) & (left % round_to == 0)
            if name in self.sizes:
                allowed &= np.isin(size - levels * (size // self.steps), list(self.sizes[name]))
        return [0, *levels[allowed].tolist()]

    def removed(self, name: str, level: int) -> int:
        """How many channels of a group are gone at a level."""
        return level * (self._sizes[name] // self.steps)

    def gone(self, level: int, earlier: Earlier) -> float:
        """How many of the full model's channels in all groups are gone at a level, beyond those gone earlier."""
        return sum(earlier.left.get(name, size) * level / self.steps for name, size in self._sizes.items())

    def full_and_left(self, earlier: Earlier) -> tuple[float, float]:
        """How many channels all groups have in the full model, and how many of them are left."""
        return (
            sum(earlier.sizes.get(name, size) for name, size in self._sizes.items()),
            sum(earlier.left.get(name, size) for name, size in self._sizes.items()),
        )

    def share_gone(self, level: int, earlier: Earlier) -> float:
        """The largest share of a group's channels in the full model that is gone at a level."""
        left = min(earlier.left.get(name, size) / earlier.sizes.get(name, size) for name, size in self._sizes.items())
        return 1 - left * (1 - level / self.steps)

    def cost(self, before: int, after: int) -> float:
        """The mean score of the channels that go between two levels."""
        taken = [
            self.scores[name].cpu()[ranked[self.removed(name, before) : self.removed(name, after)]]
            for name, ranked in self._ranked.items()
        ]
        return float(torch.cat([part.double() for part in taken]).mean())

    def kept(self, level: int) -> dict[str, list[int]]:
        """The channels of every group that are left at a level."""
        return {name: np.sort(ranked[self.removed(name, level) :]).tolist() for name, ranked in self._ranked.items()}

    def with_order(self, prices: Sequence[float]) -> Bundle:
        """The same channels in the same order, scored by a price for each of the equal parts."""
        scores = {}
        for name, own in self.scores.items():
            parts = torch.tensor(prices, dtype=torch.float64).repeat_interleave(len(own) // self.steps)
            scores[name] = torch.empty_like(parts).index_copy_(0, torch.argsort(own, stable=True).cpu(), parts)
        return Bundle(scores, self.widths, self.sizes, self.structure)


@dataclass(frozen=True)
class Order:
    """All removals in the order in which they happen.

    Args:
        bundles: what is removed from.
        events: for each removal, the place of its bundle and the level that the bundle reaches.
        rules: what limits the removals.
        earlier: what earlier steps left; by default there were none.
    """

    bundles: tuple[Bundle, ...]
    events: tuple[tuple[int, int], ...]
    rules: RankingRules
    earlier: Earlier = Earlier()

    @classmethod
    def of(cls, bundles: Sequence[Bundle], rules: RankingRules, earlier: Earlier = Earlier()) -> Order:  # noqa: B008
        """Sort all removals by score, or by the share of a group or a structure that is gone of the full model's.

        Of equal scores, those of the bundle that has lost the smaller share go first.
        """
        found: list[tuple[float, float, int, int]] = []
        for index, bundle in enumerate(bundles):
            levels = bundle.levels(rules)
            highest = -math.inf
            for before, after in zip(levels, levels[1:], strict=False):
                moment = share = bundle.share_gone(after, earlier)
                if rules.ranking != "layer":
                    moment = highest = max(highest, bundle.cost(before, after))  # a group's removals stay in order
                found.append((moment, share, index, after))
        events = [(index, level) for _, _, index, level in sorted(found)]
        if rules.ranking == "isomorphic":
            events = [(index, level) for _, index, level in sorted(_by_share_of_structure(events, bundles, earlier))]
        return cls(tuple(bundles), tuple(events), rules, earlier)

    def levels(self, events: Iterable[tuple[int, int]]) -> dict[int, int]:
        """The level of every bundle after some removals."""
        found = dict.fromkeys(range(len(self.bundles)), 0)
        found.update(events)  # a bundle's levels ascend
        return found

    def at(self, levels: Mapping[int, int]) -> dict[str, list[int]]:
        """What is left at these levels."""
        found: dict[str, list[int]] = {}
        for bundle, level in levels.items():
            found |= self.bundles[bundle].kept(level)
        return found

    def kept(self, count: int) -> dict[str, list[int]]:
        """What is left after the first `count` removals."""
        return self.at(self.levels(self.events[:count]))

    def until(self, share: float) -> dict[str, list[int]]:
        """What is left when at most `share` of the full model's channels are gone.

        By the ranking "layer" that holds for each group, by the others for all groups together.
        """
        if self.rules.ranking == "layer":
            moments = (
                (self.bundles[place].share_gone(level, self.earlier), place, level) for place, level in self.events
            )
            return self.at(self.levels((place, level) for moment, place, level in moments if moment <= share + 1e-9))
        now = {name: len(scores) for bundle in self.bundles for name, scores in bundle.scores.items()}
        full, left = sum({**now, **self.earlier.sizes}.values()), sum({**now, **self.earlier.left}.values())
        most = share * full - (full - left)
        return self.kept(bisect_right(range(1, len(self.events) + 1), most + 1e-9, key=self._gone))

    def _gone(self, count: int) -> float:
        levels = self.levels(self.events[:count])
        return sum(bundle.gone(levels[place], self.earlier) for place, bundle in enumerate(self.bundles))


def _by_share_of_structure(
    removals: Iterable[tuple[int, int]], bundles: Sequence[Bundle], earlier: Earlier
) -> Iterator[tuple[float, int, int]]:
    """Yield removals, which come by score, with the share of their structure's channels that is gone after them."""
    channels, gone = defaultdict[Hashable, float](float), defaultdict[Hashable, float](float)
    for bundle in bundles:
        full, left = bundle.full_and_left(earlier)
        channels[bundle.structure] += full
        gone[bundle.structure] += full - left
    levels = Counter[int]()
    for index, level in removals:
        bundle = bundles[index]
        gone[bundle.structure] += bundle.gone(level, earlier) - bundle.gone(levels[index], earlier)
        levels[index] = level
        yield gone[bundle.structure] / channels[bundle.structure], index, level
