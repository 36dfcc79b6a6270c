"""Find the sizes that a model's code has written down, by trying smaller models on the meta device.

Code such as `x.reshape(b, n, 3, self.num_heads, self.head_dim)` states sizes. When heads are removed, `num_heads` must
follow. Trials find which attribute must follow which dimension. A trial removes some channels of every group, runs the
compact model without computing anything, and compares every operation's shapes with what the trace predicts (`trials`).
The first operation that differs names the place. An attribute there that holds the stated size is made to follow, or
two groups are made to lose the same share (`changes`), in all modules that are alike (`twins`). Where nothing helps,
the dimension is left alone. What one trial found may fit its shares only by chance, so that another one follows. One
that found nothing is trusted, because the compact model of every plan is checked.
"""

from __future__ import annotations

import math
from typing import Any

from hfp.reconstruct.coupling.changes import candidates, left_alone
from hfp.reconstruct.coupling.trials import FailedOperation, trial, try_out
from hfp.reconstruct.coupling.twins import applied, twins_of
from hfp.reconstruct.coupling.wiring import Wiring
from hfp.reconstruct.errors import MapError

_TRIALS = 2


def fit(wiring: Wiring, example_inputs: Any, first: int = 0) -> Wiring:
    """Bind attributes, link groups and leave dimensions alone until compact models run as predicted.

    Args:
        wiring: the wiring of a model on the meta device.
        example_inputs: inputs on the meta device.
        first: the trial to begin with, 0 or 1.

    Returns:
        A wiring with more to respect; the same one where the first trial finds nothing.

    Raises:
        MapError: the model does other things in each run, whatever is pruned.
    """
    for seed in range(first, _TRIALS):
        fitted = _fitted(wiring, seed, example_inputs)
        if fitted is wiring:
            break
        wiring = fitted
    return wiring


def _fitted(wiring: Wiring, seed: int, example_inputs: Any) -> Wiring:
    """Return a wiring whose compact model runs as predicted in one trial; the same one where it did so at once."""
    while True:
        failure = try_out(wiring, trial(wiring, seed), example_inputs)
        if failure is None:
            return wiring
        wiring = _repair(wiring, failure, seed, example_inputs)


def _repair(wiring: Wiring, failure: FailedOperation, seed: int, example_inputs: Any) -> Wiring:
    """Return a wiring that gets further than the failure; what helps is done in all modules that are alike."""
    by_chance: Wiring | None = None
    for change in candidates(wiring, failure, seed):
        for candidate in (applied(wiring, change, twins_of(wiring, failure.module)), applied(wiring, change, [])):
            if _solvable(candidate) and _gets_beyond(failure, candidate, seed, example_inputs):
                if _gets_beyond(failure, candidate, seed + _TRIALS, example_inputs):
                    return candidate
                by_chance = by_chance or candidate
    if by_chance is not None:
        return by_chance
    change = left_alone(wiring, failure, trial(wiring, seed))
    if not change.fixed:
        raise MapError(
            f"{failure.module or 'the model'}: {failure.call.key[1]} is not the same in a second run of the model, "
            f"although none of its dimensions is pruned ({failure.message})"
        )
    return applied(wiring, change, twins_of(wiring, failure.module, failure.call))


def _gets_beyond(failure: FailedOperation, wiring: Wiring, seed: int, example_inputs: Any) -> bool:
    """Return whether a trial runs as predicted up to a failure, and beyond it."""
    after = try_out(wiring, trial(wiring, seed), example_inputs)
    return after is None or after.order > failure.order


def _solvable(wiring: Wiring) -> bool:
    """Return whether linked groups have a common step."""
    return all(math.gcd(*(len(wiring.groups[name].classes) for name in names)) > 1 for names in wiring.linked)
