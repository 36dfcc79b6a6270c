"""Choose which of a product's outputs become rows of a regression."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_FEWEST = 4096
"""How many rows of a batch are used, or twice the columns if that is more. More would cost more than a forward pass."""


@dataclass(frozen=True)
class Chosen:
    """The rows of a batch that are used.

    Args:
        places: for each dimension, samples first and positions then, an index per row, `[rows]`.
        dims: the sizes of these dimensions.
    """

    places: tuple[Tensor, ...]
    dims: tuple[int, ...]


def choose(dims: Sequence[int], columns: int, seed: int, device: torch.device) -> Chosen:
    """Choose rows of a batch; where there are more than needed, `seed` draws them without replacement.

    Args:
        dims: the sizes of the dimensions of samples and positions.
        columns: how many inputs a row has.
        seed: what the rows are drawn with.
        device: where the indices are.
    """
    total, most = int(torch.Size(dims).numel()), max(_FEWEST, 2 * columns)
    flat = torch.arange(total)
    if total > most:
        flat = torch.randperm(total, generator=torch.Generator().manual_seed(seed))[:most]
    return Chosen(tuple(part.to(device) for part in torch.unravel_index(flat, tuple(dims))), tuple(dims))
