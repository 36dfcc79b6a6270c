"""Yes or no for many entries, eight to a byte: how masks and kept channels cross the wire."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from hfp.errors import InputError


def to_bits(mask: Tensor) -> Tensor:
    """A boolean tensor as bytes, on its device: uint8 ``[ceil(entries / 8)]``."""
    return torch.from_numpy(np.packbits(mask.detach().cpu().numpy().reshape(-1))).to(mask.device)


def from_bits(bits: Tensor, shape: torch.Size | tuple[int, ...]) -> Tensor:
    """The boolean tensor of `shape` that `to_bits` was given.

    Raises:
        InputError: these aren't as many bits.
    """
    count = int(np.prod(shape))
    if bits.dtype != torch.uint8 or tuple(bits.shape) != ((count + 7) // 8,):
        raise InputError(f"expected {count} bits in {(count + 7) // 8} bytes; found {bits.dtype} {list(bits.shape)}")
    unpacked = np.unpackbits(bits.cpu().numpy(), count=count).astype(bool)
    return torch.from_numpy(unpacked).reshape(shape).to(bits.device)
