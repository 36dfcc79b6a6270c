"""Draw random subsets in which every class keeps its share."""

from __future__ import annotations

import numpy as np

from hfp.errors import InputError


def generator(seed: int) -> np.random.Generator:
    """Make the random generator of a seed.

    Raises:
        InputError: the seed is negative.
    """
    if seed < 0:
        raise InputError(f"the seed must be 0 or more, found {seed}")
    return np.random.default_rng(seed)


def stratified_subset(labels: np.ndarray, size: int, seed: int) -> np.ndarray:
    """Draw `size` ascending indices into `labels`, with the same share of every class, rounded to whole samples.

    Every class that occurs is in the subset if `size` is at least the number of classes.
    """
    shuffled = generator(seed).permutation(len(labels))
    _, classes, counts = np.unique(labels[shuffled], return_inverse=True, return_counts=True)
    by_class = np.argsort(classes, kind="stable")
    rank = np.empty(len(labels), dtype=np.int64)
    rank[by_class] = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    first = np.argsort(rank / counts[classes], kind="stable")[:size]
    return np.sort(shuffled[first])


def stratified_halves(labels: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw a `share` of `labels` with every class in it.

    Returns:
        The ascending indices of the rest and of the share.
    """
    size = max(round(share * len(labels)), len(np.unique(labels)))
    chosen = stratified_subset(labels, size, seed)
    return np.setdiff1d(np.arange(len(labels)), chosen, assume_unique=True), chosen
