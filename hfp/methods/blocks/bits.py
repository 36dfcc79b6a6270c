"""Yes or no for many entries, eight to a byte: how masks and kept channels cross the wire."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from hfp.errors import InputError


def to_bits(mask: Tensor) -> Tensor:
    """A boolean tensor as bytes: uint8 ``[ceil(entries / 8)]``."""
    return torch.from_numpy(np.packbits(mask.detach().cpu().numpy().reshape(-1)))


def from_bits(bits: Tensor, shape: torch.Size | tuple[int, ...]) -> Tensor:
    """The boolean tensor of `shape` that `to_bits` was given.

    Raises:
        InputError: these aren't as many bits.
    """
    count = int(np.prod(shape))
    if bits.dtype != torch.uint8 or tuple(bits.shape) != ((count + 7) // 8,):
        raise InputError(f"expected {count} bits in {(count + 7) // 8} bytes; found {bits.dtype} {list(bits.shape)}")
    return torch.from_numpy(np.unpackbits(bits.numpy(), count=count).astype(bool)).reshape(shape)
