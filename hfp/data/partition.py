"""Deal a data set's samples out to clients."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import ArrayLike

from hfp.data.stratify import generator
from hfp.errors import InputError, unknown

_TRIES = 10
_UNIFORM = 1e12  # above this the draws are uniform to six digits, and near the largest float they would overflow
_SCHEMES = ("dirichlet", "iid", "shards")
OWN = "own"
"""In place of a scheme: samples have the clients that the data set itself says they have."""
FEWEST = 2
"""A client of a federation has at least so many samples, because batch-norm can't train on one."""


def schemes() -> tuple[str, ...]:
    """Return the names of the schemes that `partition` knows."""
    return _SCHEMES


def partition(
    labels: ArrayLike,
    clients: int,
    scheme: str = "dirichlet",
    *,
    alpha: float = 1.0,
    shards_per_client: int = 2,
    seed: int = 0,
    minimum: int = 1,
) -> list[np.ndarray]:
    """Give every sample to exactly one client, and every client at least `minimum` samples.

    Args:
        labels: the class of each sample, `[samples]`.
        clients: how many clients there are.
        scheme: how samples are dealt out. "dirichlet" (default) draws, for each class, the clients' shares of it from
            Dirichlet(alpha) (Hsu et al., arXiv 1909.06335). "iid" deals equal parts at random. "shards" sorts the
            samples by label, cuts them into equal shards and deals these, so that a client has few classes (McMahan et
            al., arXiv 1602.05629, section 3).
        alpha: the concentration of "dirichlet". A large one gives every client nearly the same classes. A small one
            gives every class to few clients.
        shards_per_client: how many shards each client gets with "shards".
        seed: what draws the partition; the same seed gives the same one.
        minimum: the fewest samples that a client may have. Dirichlet shares are drawn up to ten times. If none of the
            draws gives every client enough, random samples of the best draw move from the largest clients.

    Returns:
        For each client the ascending indices of its samples, int64.

    Raises:
        InputError: the scheme is unknown; `clients`, `minimum` or `shards_per_client` is below 1; alpha is not a
            positive finite number; or there are too few samples.

    >>> labels = [0, 0, 0, 0, 1, 1, 1, 1]
    >>> parts = partition(labels, 2, "shards", shards_per_client=1, seed=0)
    >>> [part.tolist() for part in parts]
    [[0, 1, 2, 3], [4, 5, 6, 7]]
    """
    classes = np.unique(np.asarray(labels), return_inverse=True)[1].ravel()
    _check(len(classes), clients, scheme, alpha, shards_per_client, minimum)
    rng = generator(seed)
    deal: dict[str, Callable[[], list[np.ndarray]]] = {
        "dirichlet": partial(_dirichlet, classes, clients, alpha, minimum, rng),
        "iid": partial(_iid, classes, clients, rng),
        "shards": partial(_shards, classes, clients, shards_per_client, rng),
    }
    return [np.sort(part) for part in _fill_up(deal[scheme](), minimum, rng)]


def _check(samples: int, clients: int, scheme: str, alpha: float, shards_per_client: int, minimum: int) -> None:
    if scheme not in _SCHEMES:
        raise unknown("partition scheme", scheme, _SCHEMES)
    for name, count in (("clients", clients), ("minimum", minimum), ("shards_per_client", shards_per_client)):
        if count < 1:
            raise InputError(f"{name} must be 1 or more, found {count}")
    if not (math.isfinite(alpha) and alpha > 0):
        raise InputError(f"alpha must be a positive finite number, found {alpha}")
    each = max(minimum, shards_per_client if scheme == "shards" else 1)
    if clients * each > samples:
        raise InputError(
            f"{clients} clients with at least {each} sample{'s' * (each > 1)} each need {clients * each} samples, "
            f"found {samples}; take fewer clients or more samples"
        )


def _iid(classes: np.ndarray, clients: int, rng: np.random.Generator) -> list[np.ndarray]:
    return np.array_split(rng.permutation(len(classes)), clients)


def _shards(classes: np.ndarray, clients: int, each: int, rng: np.random.Generator) -> list[np.ndarray]:
    shuffled = rng.permutation(len(classes))
    by_label = shuffled[np.argsort(classes[shuffled], kind="stable")]
    shards = np.array_split(by_label, clients * each)
    dealt = rng.permutation(len(shards)).reshape(clients, each)
    return [np.concatenate([shards[shard] for shard in hand]) for hand in dealt]


def _dirichlet(
    classes: np.ndarray, clients: int, alpha: float, minimum: int, rng: np.random.Generator
) -> list[np.ndarray]:
    def lack(owners: np.ndarray) -> int:
        return int(np.maximum(minimum - np.bincount(owners, minlength=clients), 0).sum())

    best = _draw_owners(classes, clients, alpha, rng)
    for _ in range(_TRIES - 1):
        if not lack(best):
            break
        best = min(best, _draw_owners(classes, clients, alpha, rng), key=lack)
    return [np.flatnonzero(best == client) for client in range(clients)]


def _draw_owners(classes: np.ndarray, clients: int, alpha: float, rng: np.random.Generator) -> np.ndarray:
    """Draw the client of each sample, `[samples]`."""
    owners = np.empty(len(classes), dtype=np.int64)
    concentration = np.full(clients, min(alpha, _UNIFORM))
    for label in range(classes.max() + 1):
        members = rng.permutation(np.flatnonzero(classes == label))
        shares = rng.dirichlet(concentration)
        ends = np.round(np.cumsum(shares) * len(members)).astype(np.int64)
        owners[members] = np.repeat(np.arange(clients), np.diff(ends, prepend=0))
    return owners


def _fill_up(parts: list[np.ndarray], minimum: int, rng: np.random.Generator) -> list[np.ndarray]:
    parts = [rng.permutation(part) for part in parts]
    for client, part in enumerate(parts):
        while len(part) < minimum:
            donor = int(np.argmax([len(other) for other in parts]))
            part = np.append(part, parts[donor][-1])
            parts[donor] = parts[donor][:-1]
            parts[client] = part
    return parts
