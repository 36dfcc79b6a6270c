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
    elif rows.device.type == "cpu":
        _add_in_blocks(rows, at.numpy(), values, weight)
    else:
        rows.index_add_(0, at, values, alpha=weight)


def _add_in_blocks(rows: Tensor, at: NDArray[np.int64], values: Tensor, weight: float) -> None:
    step = min(max(1, _BLOCK // rows.shape[1]), len(at))
    part = torch.empty((step, rows.shape[1]), dtype=rows.dtype)
    items, parts = _items(rows), _items(part)
    for start in range(0, len(at), step):
        block = at[start : start + step]
        some = slice(len(block))
        items.take(block, out=parts[some], mode="clip")
        part[some].add_(values[start : start + step], alpha=weight)
        np.put(items, block, parts[some], mode="clip")


def _items(rows: Tensor) -> NDArray[np.void]:
    """Return the rows as items of raw bytes.

    NumPy moves these several times as fast as torch's indexing moves short rows.
    """
    width = rows.shape[1] * rows.element_size()
    return rows.detach().view(torch.uint8).numpy().reshape(-1).view(f"V{width}")
