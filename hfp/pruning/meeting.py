"""How far down an order of removals a budget leads."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from operator import itemgetter

from hfp.errors import InputError, listed
from hfp.pruning.schedule import Kept, Order

NEAR = 0.02
"""The search for a nearer plan stops when the nearest limit is missed by at most this share of it."""
_TRIES = 200  # plans whose costs are taken, where steps are coarse


def meet(
    order: Order,
    limits: Mapping[str, float],
    costs: Callable[[Kept], Mapping[str, float]],
    tolerance: float | None = None,
) -> dict[str, list[int]]:
    """The plan that stays below all limits, as near to one of them as the model's steps allow.

    Removals follow the order until all limits are met. Where the last of them takes more than `NEAR`, its bundle is
    left as it was before or after, and the others go further down the order or back; the nearer plan is taken, and so
    on for the next bundle whose step is too large. What is still missing is looked for in plans next to the nearest
    one, with a part of one bundle put back and perhaps a part of another one gone. A limit on latency is met by the
    order alone, because its measurements differ by more than such steps.

    Args:
        order: what goes first.
        limits: name of a cost -> the share of the full model's that may be left.
        costs: a plan -> its costs by name, as such shares.
        tolerance: how far below the nearest limit the plan may be, as a share of it; None allows any distance.

    Returns:
        The kept channels of every group.

    Raises:
        InputError: a limit can't be met, or no plan within the tolerance was found; the message says what can be met.
    """
    search = _Search(order, limits, costs)
    found = search.first({})
    if found.load > 1:
        raise InputError(search.too_costly(found))
    near = 1 - min(NEAR, 1.0 if tolerance is None else tolerance)
    if "latency" not in limits:
        found = search.exchanged(search.nearer(found, near), near)
    if tolerance is not None and found.load < 1 - tolerance:
        raise InputError(search.too_far(found, tolerance))
    return order.at(found.levels)


def out_of_reach(name: str, limit: float, least: float) -> str:
    """What to say where a cost can't go down to its limit."""
    return f"{name} can't go down to {limit:.4g} of the full model's: {least:.4g} is the least that is reachable here"


@dataclass(frozen=True)
class _Trial:
    """A plan of the search. pins: bundles whose level is set. last: the bundle whose removal met the limits."""

    levels: Mapping[int, int]
    load: float
    pins: Mapping[int, int]
    last: tuple[int, int] | None


@dataclass
class _Search:
    """Plans along an order, and what they cost."""

    order: Order
    limits: Mapping[str, float]
    costs: Callable[[Kept], Mapping[str, float]]
    known: dict[tuple[int, ...], Mapping[str, float]] = field(default_factory=dict)

    def shares(self, levels: Mapping[int, int]) -> Mapping[str, float]:
        """The costs of a plan; each plan is counted once."""
        key = tuple(levels[bundle] for bundle in range(len(self.order.bundles)))
        if key not in self.known:
            self.known[key] = self.costs(self.order.at(levels))
        return self.known[key]

    def load(self, levels: Mapping[int, int]) -> float:
        """The largest of a plan's costs, each as a share of its limit: at most 1 where all limits are met."""
        shares = self.shares(levels)
        return max(shares[name] / limit for name, limit in self.limits.items())

    def first(self, pins: Mapping[int, int]) -> _Trial:
        """The first plan that meets the limits while the pinned bundles stay where they are; the last one if none."""
        events = [event for event in self.order.events if event[0] not in pins]

        def levels(count: int) -> dict[int, int]:
            return {**self.order.levels(events[:count]), **pins}

        count = bisect_left(range(len(events)), True, key=lambda count: self.load(levels(count)) <= 1)
        found = levels(count)
        return _Trial(found, self.load(found), pins, events[count - 1] if count else None)

    def nearer(self, found: _Trial, near: float) -> _Trial:
        """The nearest plan of those that set one bundle after the other to the level before or after its last step."""
        best, trial = found, found
        while best.load < near and trial.last is not None and len(self.known) < _TRIES:
            bundle, after = trial.last
            before = max((level for place, level in self.order.events if place == bundle and level < after), default=0)
            trials = [self.first({**trial.pins, bundle: level}) for level in (before, after)]
            trial = max(trials, key=lambda each: each.load if each.load <= 1 else 0)
            best = max(best, trial, key=lambda each: each.load if each.load <= 1 else 0)
        return best

    def exchanged(self, found: _Trial, near: float) -> _Trial:
        """The nearest plan by single exchanges, one after the other as long as each comes nearer."""
        while found.load < near:
            trials = (replace(found, levels=each) for each in self._exchanges(found.levels) if self._known_or_may(each))
            loads = [(self.load(trial.levels), trial) for trial in trials]
            load, trial = max(
                ((each, trial) for each, trial in loads if each <= 1), default=(0.0, found), key=itemgetter(0)
            )
            if load <= found.load:
                break
            found = replace(trial, load=load)
        return found

    def _known_or_may(self, levels: Mapping[int, int]) -> bool:
        return tuple(levels.values()) in self.known or len(self.known) < 2 * _TRIES

    def _exchanges(self, levels: Mapping[int, int]) -> Iterator[dict[int, int]]:
        """Plans with one step of a bundle put back, and perhaps one of another bundle taken."""
        steps = {place: [0, *(level for bundle, level in self.order.events if bundle == place)] for place in levels}
        back, further = {}, {}
        for place, level in levels.items():
            at = steps[place].index(level)
            if at > 0:
                back[place] = steps[place][at - 1]
            if at + 1 < len(steps[place]):
                further[place] = steps[place][at + 1]
        for place, level in back.items():
            yield {**levels, place: level}
        for (place, level), (other, taken) in product(back.items(), further.items()):
            if place != other:
                yield {**levels, place: level, other: taken}

    def too_costly(self, found: _Trial) -> str:
        """What to say where even the last plan is above a limit."""
        shares = self.shares(found.levels)
        name, rules = max(self.limits, key=lambda name: shares[name] / self.limits[name]), self.order.rules
        free = rules.round_to is None and rules.min_channels == 1
        given = "" if free else f" with round_to={rules.round_to or 1} and min_channels={rules.min_channels}"
        return out_of_reach(name, self.limits[name], shares[name]) + given

    def too_far(self, found: _Trial, tolerance: float) -> str:
        """What to say where the nearest plan is further below the limits than asked for."""
        shares = self.shares(found.levels)
        name = max(self.limits, key=lambda name: shares[name] / self.limits[name])
        last = [] if found.last is None else [repr(name) for name in self.order.bundles[found.last[0]].scores]
        step = f" (the last step to it is in layer{'s' * (len(last) > 1)} {listed(last)})" if last else ""
        return (
            f"{name} of {self.limits[name]:.4g} can't be met within {tolerance:.2%}: {shares[name]:.4g} of the full "
            f"model's is the nearest below it{step}; give a larger tolerance, or allow finer steps "
            "(a smaller round_to, other layers)"
        )
