"""A ranking of channels over the whole model from losses that are measured, not predicted.

Scores say which channel of a group should go first; what the tenth or the last one costs, and what the channels of one
group are worth next to another's, they say badly: they speak of one channel alone. So the loss is measured with a
quarter, a half, ... of each group gone, everything else in place, and a channel's rank is what its removal adds to that
curve per unit of the budget that it saves. Batch-norm layers use each batch's own statistics meanwhile, as they will
after recalibration. The groups are taken to add up; pruning in steps measures anew in between.

Source: removing by measured loss per saved resource, layer by layer, is NetAdapt's (Yang et al., ECCV 2018); batch-norm
statistics taken anew before judging a pruned network are EagleEye's (Li et al., ECCV 2020).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hfp.importance.capture.batches import Pass
from hfp.pruning.schedule import Bundle, RankingRules
from hfp.training.batch_norm import batch_statistics

LEVELS = (0.25, 0.5, 0.75, 0.875, 1.0)
"""Shares of what a group may lose at which the loss is measured."""
SAMPLES = 256
"""How many samples it is measured on, or as many as there are; whole batches."""

Kept = Mapping[str, Sequence[int]]


def measured(
    bundles: Iterable[Bundle], rules: RankingRules, outcome: Callable[[Kept], tuple[float, float]]
) -> list[Bundle]:
    """The same groups in the same order inside each, with prices for scores that compare between groups.

    Args:
        bundles: groups with a criterion's scores.
        rules: what they may lose.
        outcome: (cost that is left, in any unit, loss) of the model that keeps some channels of some groups,
            and all of the others.
    """
    cost, loss = outcome({})
    found = []
    for bundle in bundles:
        points = [
            (level, cost - left, reached - loss)
            for level in tried(bundle.levels(rules))
            for left, reached in (outcome(bundle.kept(level)),)
        ]
        found.append(bundle.with_order(prices(points, bundle.steps)))
    return found


def tried(levels: Sequence[int]) -> list[int]:
    """At which of a group's levels the loss is measured."""
    return sorted({levels[round(share * (len(levels) - 1))] for share in LEVELS} - {0})


def prices(points: Iterable[tuple[int, float, float]], steps: int) -> list[float]:
    """The loss that each removal of a group costs per unit of cost saved, ascending, `[steps]`.

    The slopes of the curve's lower convex hull, each at the middle of its piece, linear in between.

    points: (removals, cost saved, loss gained), ascending; (0, 0, 0) is left out. Losses that aren't finite are, too.
    """
    hull = [(0, 0.0, 0.0)]
    for point in points:
        if point[1] <= hull[-1][1] or not math.isfinite(point[2]):
            continue
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) >= _slope(hull[-1], point):
            hull.pop()
        hull.append(point)
    if len(hull) == 1:
        return [math.inf] * steps
    pieces = list(zip(hull, hull[1:], strict=False))
    middles = [(before[0] + after[0]) / 2 for before, after in pieces]
    slopes = [_slope(before, after) for before, after in pieces]
    places = np.arange(steps)
    return list(np.interp(places + 0.5, middles, slopes) + places * 1e-9 * np.abs(slopes).max())


def _slope(before: tuple[int, float, float], after: tuple[int, float, float]) -> float:
    return (after[2] - before[2]) / (after[1] - before[1])


def mean_loss(model: nn.Module, batches: Iterable[Any], loss_fn: Callable[..., Tensor]) -> float:
    """The mean loss over up to `SAMPLES` samples; the model's running statistics change."""
    run = Pass(loss_fn)
    total, samples = 0.0, 0
    with torch.no_grad(), batch_statistics(model):
        for batch, size in run.batches(batches, model):
            output = run.output(model, batch)
            total += float(run.unchecked_loss_sum(output, run.target(output, batch, size), size))
            samples += size
            if samples >= SAMPLES:
                break
    return total / samples
