"""Packs boolean tensors eight entries to a byte, which is how masks and kept channels cross the wire."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from hfp.errors import InputError


def to_bits(mask: Tensor) -> Tensor:
    """Pack a boolean tensor into bytes, on its device: uint8 `[ceil(entries / 8)]`."""
    return torch.from_numpy(np.packbits(mask.detach().cpu().numpy().reshape(-1))).to(mask.device)


def from_bits(bits: Tensor, shape: torch.Size | tuple[int, ...]) -> Tensor:
    """Unpack the boolean tensor of `shape` that `to_bits` was given.

    Raises:
        InputError: there are more or fewer bits than entries.
    """
    count = int(np.prod(shape))
    if bits.dtype != torch.uint8 or tuple(bits.shape) != ((count + 7) // 8,):
        raise InputError(f"expected {count} bits in {(count + 7) // 8} bytes; found {bits.dtype} {list(bits.shape)}")
    unpacked = np.unpackbits(bits.cpu().numpy(), count=count).astype(bool)
    return torch.from_numpy(unpacked).reshape(shape).to(bits.device)
