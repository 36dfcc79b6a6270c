"""Score channels that are removed together: a score is what a removal adds to that of all lower scores."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

ROUNDS = 64  # a group of more channels chooses several per round


def joint_scores(gate: Tensor, cost: Callable[[Tensor], Tensor]) -> Tensor:
    """Return scores `[channels]` whose ascending order is a greedy order of removal.

    The channel that adds least to the cost of those already chosen goes next. Its score is what it adds, or the score
    before it where that is higher, so that the order of scores is the order of removal.

    Args:
        gate: what the removal of each channel changes, `[samples, passes, channels]`.
        cost: a function that takes changes `[samples, passes, n]` and returns the cost of each, `[n]`.
    """
    channels = gate.shape[2]
    left = torch.arange(channels, device=gate.device)
    gone = torch.zeros_like(gate[:, :, :1])
    order, totals = [], [cost(gone)]
    while len(left):
        ranked = cost(gone + gate[:, :, left]).argsort(stable=True)
        chosen = left[ranked[: -(-channels // ROUNDS)]]
        path = gone + gate[:, :, chosen].cumsum(2)
        totals.append(cost(path))
        order.append(chosen)
        gone, left = path[:, :, -1:], left[torch.isin(left, chosen, invert=True)]
    return _rising(torch.cat(order), torch.cat(totals).diff())


def quadratic_joint_scores(matrix: Tensor) -> Tensor:
    r"""Return `joint_scores` for a quadratic cost, with one channel chosen at a time.

    Removing the channels `S` costs \(\tfrac12 \sum_{c, c' \in S} M_{cc'}\).

    Args:
        matrix: the symmetric `M`, `[channels, channels]`.
    """
    matrix = matrix.cpu()
    adds = matrix.diagonal() / 2
    order, added = [], []
    for _ in range(len(matrix)):
        channel = int(adds.argmin())
        order.append(channel)
        added.append(float(adds[channel]))
        adds = adds + matrix[channel]
        adds[channel] = torch.inf
    return _rising(torch.tensor(order, dtype=torch.long), matrix.new_tensor(added))


def _rising(order: Tensor, added: Tensor) -> Tensor:
    """Return the scores of the channels in `order`, made to rise along it.

    `added` is what each channel of the order adds to the cost.
    """
    added = added.cummax(0).values
    place = torch.arange(len(order), device=order.device, dtype=added.dtype) / len(order)
    scores = torch.empty_like(added)
    scores[order] = added + place * 1e-6 * added.abs().max()
    return scores
