"""What a private run is asked for, and how much privacy it has spent. Torch is not imported for it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from hfp.errors import InputError

PRIVACY: Mapping[str, str] = MappingProxyType(
    {
        "noise": "standard deviation of the noise over the clip length; it must be given",
        "clip": "the most that a client's change of all parameters may be long, 1 by default",
        "delta": "the probability that the promise does not hold, 0.00001 by default",
        "statistics_clip": "the same as clip for batch-norm statistics, 10 by default",
    }
)
"""What a run's privacy is made of."""


@dataclass(frozen=True)
class Privacy:
    """What a private run is asked for.

    Args:
        noise: standard deviation of the noise over the clip length; more is more private.
        clip: the most that a client's change of all parameters may be long (Euclidean norm).
        delta: the probability that the promise does not hold; below one over the number of clients.
        statistics_clip: the same as `clip` for a client's batch-norm statistics, measured from the current ones.
    """

    noise: float
    clip: float = 1.0
    delta: float = 1e-5
    statistics_clip: float = 10.0

    def __post_init__(self) -> None:
        """Check the numbers."""
        for name in ("noise", "clip", "statistics_clip"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise InputError(f"privacy's {name} must be a finite number above 0; found {value}")
        if not 0 < self.delta < 1:
            raise InputError(f"privacy's delta must be above 0 and below 1; found {self.delta}")


def privacy_of(values: Mapping[str, float]) -> Privacy:
    """Make the privacy that an experiment asks for.

    Raises:
        InputError: the noise is not given, or a number is out of its range.

    >>> privacy_of({"noise": 2.0}).clip
    1.0
    """
    if "noise" not in values:
        raise InputError("privacy needs its noise, for instance noise=1.0")
    return Privacy(**values)


def epsilon(privacy: Privacy, asked: int, clients: int, rounds: int, statistics: int) -> float:
    """Count the privacy spent: ε at the run's δ, by Rényi differential privacy (dp-accounting).

    Args:
        privacy: noise and δ.
        asked: how many clients each round asks; where that is not all, the random choice is counted in.
        clients: how many clients there are.
        rounds: rounds done.
        statistics: releases of batch-norm statistics done, each of all clients.

    Raises:
        InputError: dp-accounting is not installed.

    >>> round(epsilon(Privacy(noise=4.0), 10, 10, rounds=10, statistics=0), 2)
    3.62
    """
    try:
        import dp_accounting
        from dp_accounting import rdp
    except ImportError:
        raise InputError('privacy is counted by dp-accounting; pip install "hfp[privacy]"') from None
    relation = dp_accounting.NeighboringRelation
    whole = asked >= clients
    accountant = rdp.RdpAccountant(neighboring_relation=relation.ADD_OR_REMOVE_ONE if whole else relation.REPLACE_ONE)
    # a client that is replaced by another one moves the sum by twice the clip length
    noise = dp_accounting.GaussianDpEvent(privacy.noise if whole else privacy.noise / 2)
    if rounds:
        each = noise if whole else dp_accounting.SampledWithoutReplacementDpEvent(clients, asked, noise)
        accountant.compose(each, rounds)
    if statistics:
        accountant.compose(noise, statistics)
    return float(accountant.get_epsilon(privacy.delta))
