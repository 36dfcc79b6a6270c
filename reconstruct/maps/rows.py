"""Write to and add to scattered rows of a contiguous tensor."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_BLOCK = 2**18  # this many entries stay in the processor's cache while they are read, added to and written back


def put_rows(rows: Tensor, at: Tensor, values: Tensor) -> None:
    """Write `values` [n, width], of the same dtype, over rows `at` [n] of a contiguous tensor [rows, width]."""
    if rows.shape[1] == 1:
        rows.view(-1).scatter_(0, at, values.view(-1))
    elif rows.device.type == "cpu":
        np.put(_items(rows), at.numpy(), _items(values.contiguous()), mode="clip")  # "raise" checks the range again
    else:
        rows.index_copy_(0, at, values)


def add_rows(rows: Tensor, at: Tensor, values: Tensor, weight: float) -> None:
    """Add `weight * values` [n, width], of the same dtype, to distinct rows `at` [n] of a contiguous tensor."""
    if rows.shape[1] == 1:
        rows.view(-1).scatter_add_(0, at, (values * weight).view(-1))
    else:
        rows.index_add_(0, at, values, alpha=weight)


def add_columns(into: Tensor, values: Tensor, first: Tensor | None, columns: Tensor, weight: float) -> None:
    """Add `weight * values` to some indices of the first two dimensions of a contiguous tensor on the processor.

    Whole rows are added, in which the columns that are left out are zero, because the processor adds neighbours quickly
    and a column is often shorter than what it reads at once.

    Args:
        into: `[rows, columns, width]`.
        values: `[kept rows, kept columns, width]`, of the same dtype.
        first: the kept rows, ascending; None for all.
        columns: the kept columns, ascending.
        weight: a finite number.
    """
    count, size = values.shape[0], into.shape[1]
    step = min(max(1, _BLOCK // (size * into.shape[2])), count)
    # adding a zero of this sign changes nothing, not even the sign of a zero
    part = torch.full((step, *into.shape[1:]), -0.0 if weight >= 0 else 0.0, dtype=into.dtype)
    items = _items(part.flatten(0, 1))
    at = np.arange(0, step * size, size)[:, None] + columns.numpy()
    for start in range(0, count, step):
        some = min(step, count - start)
        block = values[start : start + some].flatten(0, 1).contiguous()
        np.put(items, at[:some], _items(block), mode="clip")
        if first is None:
            into[start : start + some].add_(part[:some], alpha=weight)
        else:
            into.index_add_(0, first[start : start + some], part[:some], alpha=weight)


def _items(rows: Tensor) -> NDArray[np.void]:
    """Return the rows as items of raw bytes.

    NumPy moves these several times as fast as torch's indexing moves short rows.
    """
    width = rows.shape[1] * rows.element_size()
    return rows.detach().view(torch.uint8).numpy().reshape(-1).view(f"V{width}")
