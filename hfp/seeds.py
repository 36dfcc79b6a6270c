"""One seed a purpose, so that methods compared under one seed see the same data, weights and batches."""

from __future__ import annotations

import zlib

import numpy as np
import torch


def derive(seed: int, *labels: str | int) -> int:
    """A 63-bit seed for one purpose, e.g. ``derive(0, "batches", round, client)``; equal labels give equal seeds."""
    words = [zlib.crc32(label.encode()) if isinstance(label, str) else label for label in labels]
    state = np.random.SeedSequence([seed, *words]).generate_state(1, np.uint64)[0]
    return int(state >> np.uint64(1))


def generator(seed: int, *labels: str | int) -> torch.Generator:
    """A CPU generator seeded by `derive`."""
    return torch.Generator().manual_seed(derive(seed, *labels))
