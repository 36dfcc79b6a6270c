"""Derives one seed per purpose, so that methods compared under one seed see the same data, weights and batches."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import numpy as np
import torch

from hfp.layers.calling import python_and_numpy_kept, random_state_kept


def derive(seed: int, *labels: str | int) -> int:
    """Derive a 63-bit seed for one purpose; equal labels give equal seeds.

    >>> derive(0, "batches", 3, 1) == derive(0, "batches", 3, 1) != derive(0, "weights")
    True
    """
    words = [zlib.crc32(label.encode()) if isinstance(label, str) else label for label in labels]
    state = np.random.SeedSequence([seed, *words]).generate_state(1, np.uint64)[0]
    return int(state >> np.uint64(1))


def generator(seed: int, *labels: str | int) -> torch.Generator:
    """Make a CPU generator that is seeded by `derive`."""
    return torch.Generator().manual_seed(derive(seed, *labels))


@contextmanager
def seeded(device: torch.device, seed: int, *labels: str | int) -> Iterator[None]:
    """Seed the global generators, which dropout layers draw from, by `derive` while inside.

    These are torch's of the processor and of `device`, Python's and NumPy's. They are afterwards what they were.

    >>> with seeded(torch.device("cpu"), 0, "layers", 1):
    ...     one = torch.rand(3)
    >>> with seeded(torch.device("cpu"), 0, "layers", 1):
    ...     assert torch.equal(torch.rand(3), one)
    """
    derived = derive(seed, *labels)
    if device.type == "cpu":
        with torch.random.fork_rng(devices=[]), python_and_numpy_kept(derived):
            torch.default_generator.manual_seed(derived)
            yield
        return
    module = getattr(torch, device.type)
    before = module.get_rng_state(device)
    with torch.random.fork_rng(devices=[]), python_and_numpy_kept(derived):
        torch.default_generator.manual_seed(derived)
        try:
            with module.device(device):
                module.manual_seed(derived)
            yield
        finally:
            module.set_rng_state(before, device)


def making_seeded(seed: int, *labels: str | int) -> AbstractContextManager[None]:
    """Seed all global generators, which a model's first weights are drawn from, by `derive` while inside.

    They are afterwards what they were (`hfp.layers.calling.random_state_kept`).
    """
    return random_state_kept(derive(seed, *labels))
