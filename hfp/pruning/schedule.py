"""In which order channels go, and how far down that order a budget leads."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from hfp.errors import InputError
from hfp.pruning.choices import RANKINGS

_SLACK = 0.02  # a budget is met from below within this share of itself
_TRIES = 200  # of single steps, where the order alone is too coarse


@dataclass(frozen=True)
class RankingRules:
    """What limits a plan.

    ranking: "layer" (every group loses the same share), "global" (the lowest scores go, wherever they are) or
        "measured" (likewise, by the prices of `hfp.pruning.measuring`).
    round_to: channels of a layer are removed so that a multiple of this is left. min_channels: what every layer keeps.
    """

    ranking: str = "layer"
    round_to: int | None = None
    min_channels: int = 1

    def __post_init__(self) -> None:
        if self.ranking not in RANKINGS:
            raise InputError(f"ranking is one of {', '.join(RANKINGS)}, not {self.ranking!r}")
        round_to = 1 if self.round_to is None else self.round_to
        for name, value in (("round_to", round_to), ("min_channels", self.min_channels)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise InputError(f"{name} is a whole number of channels, at least 1, not {value!r}")


@dataclass(frozen=True)
class Bundle:
    """Groups that lose the same share, step by step.

    scores: group -> score of every channel, lowest removed first.
    widths: group -> how many channels of its layer one of them is.
    """

    scores: Mapping[str, Tensor]
    widths: Mapping[str, int]

    @property
    def steps(self) -> int:
        """Into how many equal parts all groups can be cut."""
        return math.gcd(*(len(scores) for scores in self.scores.values()))

    def levels(self, rules: RankingRules) -> list[int]:
        """How many parts may be gone, ascending from 0."""
        return [cut for cut in range(self.steps) if all(self._allowed(name, cut, rules) for name in self.scores)] or [0]

    def _allowed(self, name: str, cut: int, rules: RankingRules) -> bool:
        left = (len(self.scores[name]) - self.cut(name, cut)) * self.widths[name]
        return cut == 0 or (left >= rules.min_channels and left % (rules.round_to or 1) == 0)

    def cut(self, name: str, cut: int) -> int:
        """How many channels of a group are gone when `cut` parts are."""
        return cut * (len(self.scores[name]) // self.steps)

    def cost(self, before: int, after: int) -> float:
        """The mean score of the channels that go between two levels."""
        taken = [
            torch.sort(scores).values[self.cut(name, before) : self.cut(name, after)]
            for name, scores in self.scores.items()
        ]
        return float(torch.cat([part.double().cpu() for part in taken]).mean())

    def kept(self, cut: int) -> dict[str, list[int]]:
        """The channels that are left of every group."""
        return {
            name: sorted(torch.argsort(scores, stable=True)[self.cut(name, cut) :].tolist())
            for name, scores in self.scores.items()
        }

    def with_order(self, prices: Sequence[float]) -> Bundle:
        """The same channels in the same order, with the prices of its equal parts for scores."""
        scores = {}
        for name, own in self.scores.items():
            parts = torch.tensor(prices, dtype=torch.float64).repeat_interleave(len(own) // self.steps)
            scores[name] = torch.empty_like(parts).index_copy_(0, torch.argsort(own, stable=True).cpu(), parts)
        return Bundle(scores, self.widths)


@dataclass(frozen=True)
class Order:
    """All removals, in the order in which they happen: (bundle, the level it is at afterwards)."""

    bundles: tuple[Bundle, ...]
    events: tuple[tuple[int, int], ...]
    moments: tuple[float, ...]
    rules: RankingRules

    @classmethod
    def of(cls, bundles: Sequence[Bundle], rules: RankingRules) -> Order:
        """Sort all removals by the share that is gone, or by score."""
        found: list[tuple[float, int, int]] = []
        for index, bundle in enumerate(bundles):
            levels = bundle.levels(rules)
            highest = -math.inf
            for before, after in zip(levels, levels[1:], strict=False):
                moment = after / bundle.steps
                if rules.ranking != "layer":
                    moment = highest = max(highest, bundle.cost(before, after))  # a group's removals stay in order
                found.append((moment, index, after))
        found.sort()
        return cls(
            tuple(bundles),
            tuple((index, level) for _, index, level in found),
            tuple(moment for moment, _, _ in found),
            rules,
        )

    @property
    def steps(self) -> dict[int, list[int]]:
        """The levels that each bundle passes through."""
        found: dict[int, list[int]] = {}
        for bundle, level in self.events:
            found.setdefault(bundle, []).append(level)
        return found

    def levels(self, events: Iterable[int]) -> dict[int, int]:
        """The level of each bundle after some of the removals, given by their places in the order."""
        found = dict.fromkeys(range(len(self.bundles)), 0)
        for event in events:
            bundle, level = self.events[event]
            found[bundle] = max(found[bundle], level)
        return found

    def at(self, levels: Mapping[int, int]) -> dict[str, list[int]]:
        """What is left at these levels."""
        found: dict[str, list[int]] = {}
        for bundle, level in levels.items():
            found |= self.bundles[bundle].kept(level)
        return found

    def kept(self, events: Iterable[int]) -> dict[str, list[int]]:
        """What is left after some of the removals."""
        return self.at(self.levels(events))

    def until(self, share: float) -> dict[str, list[int]]:
        """What is left when all groups have lost at most `share` of their channels: each of them, or all together."""
        if self.rules.ranking == "layer":
            return self.kept([event for event, moment in enumerate(self.moments) if moment <= share + 1e-9])
        total = sum(len(scores) for bundle in self.bundles for scores in bundle.scores.values())
        too_many = search(
            len(self.events) + 1, lambda count: count > len(self.events) or self._gone(count) > share * total + 1e-9
        )
        return self.kept(range(too_many - 1))

    def _gone(self, count: int) -> int:
        kept = self.kept(range(count))
        return sum(len(scores) - len(kept[name]) for bundle in self.bundles for name, scores in bundle.scores.items())


def search(count: int, enough: Callable[[int], bool]) -> int:
    """The smallest number of removals, 0 to `count`, that is enough; `count` if none is."""
    low, high = 0, count
    while low < high:
        middle = (low + high) // 2
        if enough(middle):
            high = middle
        else:
            low = middle + 1
    return low


def meet(
    order: Order, target: float, cost: Callable[[Mapping[str, Sequence[int]]], float], what: str, exact: bool
) -> dict[str, list[int]]:
    """The plan that costs at most `target`, and, if `exact`, no more than 2 % less.

    Args:
        order: what goes first.
        target: the share of the full model's cost.
        cost: what a plan costs, as that share.
        what: the cost's name, for messages.
        exact: whether too little left is an error.

    Raises:
        InputError: the target can't be met; the message says what can.
    """
    known: dict[int, float] = {}

    def at(count: int) -> float:
        if count not in known:
            known[count] = cost(order.kept(range(count)))
        return known[count]

    count = search(len(order.events), lambda removals: at(removals) <= target)
    least = at(count)
    if least > target:
        raise InputError(
            f"{what} can't go down to {target:.4g} of the full model's: {least:.4g} is the least that is reachable here"
        )
    if not exact or count == 0 or least >= target * (1 - _SLACK):
        return order.kept(range(count))
    for levels in islice(_near(order, count), _TRIES):
        kept = order.at(levels)
        if target * (1 - _SLACK) <= cost(kept) <= target:
            return kept
    layers = ", ".join(order.bundles[order.events[count - 1][0]].scores)
    raise InputError(
        f"{what} of {target:.4g} can't be met within 2 %: the next channels to go, of {layers}, "
        f"lead from {at(count - 1):.4g} to {least:.4g} of the full model's; "
        "ask for one of these, or allow finer steps (a smaller round_to, other layers)"
    )


def _near(order: Order, count: int) -> Iterator[dict[int, int]]:
    """Levels next to those before the last of `count` removals: one bundle further, and perhaps another one back."""
    base = order.levels(range(count - 1))
    further = {bundle: level for bundle, level in reversed(order.events) if level > base[bundle]}
    back: dict[int, int] = {}
    for bundle, level in order.events[: count - 1]:
        back[bundle] = max((each for each in (0, *order.steps[bundle]) if each < level), default=0)
    for bundle, level in further.items():
        yield {**base, bundle: level}
    for bundle, level in further.items():
        for other, before in back.items():
            if other != bundle:
                yield {**base, bundle: level, other: before}
