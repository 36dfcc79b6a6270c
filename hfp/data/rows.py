"""Give a client its share of images, which may be larger than memory."""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from torch import Tensor

LARGE_BYTES = 2**28
"""Images of this size or more are not copied. They stay where they are, which is a mapped file as a rule."""


class Rows:
    """Some rows of a tensor, which are indexed like a tensor and copied one batch at a time."""

    def __init__(self, whole: Tensor, chosen: Tensor) -> None:
        """Take the rows `chosen` (int64 indices) of `whole`."""
        self._whole, self._chosen = whole, chosen
        self.shape = torch.Size((len(chosen), *whole.shape[1:]))
        self.dtype, self.device = whole.dtype, whole.device

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, index: Tensor | slice) -> Tensor:
        return self._whole[self._chosen[index]]


def share_of(images: Tensor, chosen: np.ndarray, copy: bool = True) -> Tensor:
    """Return the chosen images `[samples, ...]`.

    With `copy` they are a copy where that is small; else they are `Rows`, which are indexed like one.
    """
    indices = torch.from_numpy(chosen)
    if copy and images.numel() * images.element_size() < LARGE_BYTES:
        return images[indices]
    return cast(Tensor, Rows(images, indices))
