"""Write to and add to scattered rows of a contiguous tensor."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_BLOCK = 2**17  # entries that are read, added to and written back while they are in the processor's cache


def put_rows(rows: Tensor, at: Tensor, values: Tensor) -> None:
    """Write `values` [n, width], of the same dtype, over rows `at` [n] of a contiguous tensor [rows, width]."""
    if rows.shape[1] == 1:
        rows.view(-1).scatter_(0, at, values.view(-1))
    elif rows.device.type == "cpu":
        np.put(_items(rows), at.numpy(), _items(values.contiguous()), mode="clip")  # in range; "raise" checks again
    else:
        rows.index_copy_(0, at, values)


def add_rows(rows: Tensor, at: Tensor, values: Tensor, weight: float) -> None:
    """Add `weight * values` [n, width], of the same dtype, to distinct rows `at` [n] of a contiguous tensor."""
    if rows.shape[1] == 1:
        rows.view(-1).scatter_add_(0, at, (values * weight).view(-1))
    elif rows.device.type == "cpu":
        step = max(1, _BLOCK // rows.shape[1])
        for block, some in zip(at.split(step), values.split(step), strict=True):
            part = torch.empty_like(some, memory_format=torch.contiguous_format)
            _items(rows).take(block.numpy(), out=_items(part), mode="clip")
            put_rows(rows, block, part.add_(some, alpha=weight))
    else:
        rows.index_add_(0, at, values, alpha=weight)


def _items(rows: Tensor) -> NDArray[np.void]:
    """The rows as items of raw bytes, which NumPy moves several times as fast as torch's indexing moves short rows."""
    width = rows.shape[1] * rows.element_size()
    return rows.detach().view(torch.uint8).numpy().reshape(-1).view(f"V{width}")
