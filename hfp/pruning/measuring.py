"""Rank channels over the whole model by losses that are measured, not predicted.

A score speaks of one channel alone. It says which channel of a group should go first, but hardly what the tenth costs,
or what a channel of another group is worth. So the loss is measured with a quarter, a half and more of what each group
may lose gone (`LEVELS`), while everything else stays in place. A channel's rank is what its removal adds to that curve
per unit of the budget that it saves. Batch-norm layers use each batch's own statistics meanwhile, as they do after
recalibration. The losses of several groups are taken to add up; pruning in steps measures anew in between.

All losses are measured on the same samples. With many groups each loss is measured on fewer, so that one ranking costs
at most `MOST_SAMPLES` samples unless there are more than ninety groups.

Source: removing by measured loss per saved resource, layer by layer, is NetAdapt's (Yang et al., ECCV 2018); batch-norm
statistics taken anew before judging a pruned network are EagleEye's (Li et al., ECCV 2020).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hfp.errors import InputError
from hfp.importance.capture.batches import Pass, first_tensor, mapped
from hfp.pruning.schedule import Bundle, Kept, RankingRules
from hfp.training.batch_norm import batch_statistics

LEVELS = (0.25, 0.5, 0.75, 0.875, 1.0)
"""Shares of what a group may lose at which the loss is measured."""
SAMPLES = 256
"""The largest number of samples that a loss is measured on."""
FEWEST_SAMPLES = 32
"""The smallest number of samples that a loss is measured on, where there are as many."""
MOST_SAMPLES = 15_000
"""The number of samples that all measurements of one ranking may run together."""

_ALONE = "ranking 'measured' takes batch-norm statistics of each batch; give batches of two samples or more, not of one"


def measured(
    bundles: Iterable[Bundle], rules: RankingRules, outcome: Callable[[Kept], tuple[float, float]]
) -> list[Bundle]:
    """Give every group prices, which compare between groups, in place of scores; the order inside each stays.

    Args:
        bundles: groups with a criterion's scores.
        rules: what they may lose.
        outcome: takes the kept channels of some groups, and returns the cost that is left, in any unit, and the loss of
            the model that keeps these channels and all of the other groups.

    Raises:
        InputError: the loss of the whole model is not finite.
    """
    cost, loss = outcome({})
    if not math.isfinite(loss):
        raise InputError(
            f"the loss of the full model is {loss} with each batch's own statistics, so that ranking 'measured' can't "
            "compare losses with it; check loss_fn, the data and the weights"
        )
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
    """Choose the levels of a group at which the loss is measured."""
    return sorted({levels[round(share * (len(levels) - 1))] for share in LEVELS} - {0})


def measurements(bundles: Iterable[Bundle], rules: RankingRules) -> int:
    """Count the losses that `measured` asks for."""
    return 1 + sum(len(tried(bundle.levels(rules))) for bundle in bundles)


def samples_for(batches: Iterable[Any], losses: int) -> list[Any]:
    """Choose what losses are measured on: the first batches, of which the last one may be cut.

    Args:
        batches: all the data.
        losses: the number of losses that will be measured.

    Returns:
        Batches with at most `SAMPLES` samples. There are fewer where all measurements together would otherwise run more
        than `MOST_SAMPLES`, but at most down to `FEWEST_SAMPLES`.
    """
    most = min(SAMPLES, max(FEWEST_SAMPLES, MOST_SAMPLES // losses))
    found: list[Any] = []
    largest = 0
    for batch in batches:
        first = first_tensor(batch)
        size = len(first) if first is not None and first.dim() else 1
        if found and size > most and most < FEWEST_SAMPLES:
            break  # batch-norm layers would have too few samples for statistics
        if found and size == 1 < largest:
            continue  # as one sample that is left over
        largest = max(largest, size)
        found.append(batch if size <= most else _part(batch, size, most))
        most -= size
        if most <= 0:
            break
    return found


def _part(batch: Any, size: int, most: int) -> Any:
    """Return the first samples of a batch."""
    return mapped(batch, lambda tensor: tensor[:most] if tensor.dim() and len(tensor) == size else tensor)


def prices(points: Iterable[tuple[int, float, float]], steps: int) -> list[float]:
    """Compute what each removal of a group adds to the loss per unit of cost saved, ascending.

    Prices are the slopes of the lower convex hull of the measured curve, each at the middle of its piece, and linear in
    between.

    Args:
        points: triples of removals, cost saved and loss gained, ascending, without (0, 0, 0). Points whose loss is not
            finite are not used.
        steps: the number of removals.

    Returns:
        A price per removal, `[steps]`.
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
    """Measure the mean loss over the batches' samples. The model's running statistics change.

    Raises:
        InputError: a batch is one sample alone, of which batch-norm layers take no statistics.
    """
    run = Pass(loss_fn)
    total, samples = 0.0, 0
    with torch.no_grad(), batch_statistics(model):
        for batch, size in run.batches(batches, model):
            try:
                output = run.output(model, batch)
            except ValueError as error:
                if "more than 1 value per channel" not in str(error):
                    raise
                raise InputError(_ALONE) from error
            total += float(run.unchecked_loss_sum(output, run.target(output, batch, size), size))
            samples += size
    return total / samples
