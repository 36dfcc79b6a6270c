"""Which robust rules there are, and how a person writes them. Torch is not imported for it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from hfp.errors import InputError, repeated, unknown


@dataclass(frozen=True)
class TrimmedMean:
    """Take the `trim` smallest and the `trim` largest values of every entry out of its mean.

    What is taken out is replaced by the mean of the rest, so that a plain mean of the replaced values is the trimmed
    mean (Yin et al., ICML 2018, arXiv 1803.01498). An entry with fewer than ``2 * trim + 1`` holders keeps its global
    value.
    """

    trim: int

    def __post_init__(self) -> None:
        """Check the number."""
        if self.trim < 1:
            raise InputError(f"trimmed-mean must take out at least 1 value on each side; found {self.trim}")

    @property
    def fewest_holders(self) -> int:
        """How many clients must hold an entry."""
        return 2 * self.trim + 1


@dataclass(frozen=True)
class Median:
    """Replace every value of an entry by the median over its holders.

    With fewer holders than `fewest_holders`, the entry keeps its global value.
    """

    fewest_holders: int = 3


@dataclass(frozen=True)
class NormClip:
    """Shorten every change that is longer than `times` the median of all changes of the round.

    Submodels have different sizes, so a length is the root mean square over the entries that a client holds.
    """

    times: float = 1.0

    def __post_init__(self) -> None:
        """Check the number."""
        if not 0 < self.times < math.inf:
            raise InputError(f"norm-clip must be finite and above 0 times the median; found {self.times}")


Rule = TrimmedMean | Median | NormClip
ROBUST_RULES: Mapping[str, Callable[..., Rule]] = {"trimmed-mean": TrimmedMean, "median": Median, "norm-clip": NormClip}


def parse_rules(text: str) -> tuple[Rule, ...]:
    """Read rules such as ``"trimmed-mean:2"`` or ``"norm-clip,median"``, applied in this order.

    Args:
        text: names with commas between them. ``trimmed-mean:N`` takes out the N smallest and largest values,
            ``norm-clip:C`` shortens changes to C times the median (1 if not given), ``median`` has no number.

    Raises:
        InputError: a name is not known or listed twice, or a number is missing or out of its range.

    >>> parse_rules("norm-clip,trimmed-mean:2")
    (NormClip(times=1.0), TrimmedMean(trim=2))
    """
    parts = [part.strip() for part in text.split(",")]
    rules = tuple(map(_parsed, parts))
    if (twice := repeated([part.partition(":")[0] for part in parts])) is not None:
        raise InputError(f"robust: {twice} is listed twice; list each rule once")
    return rules


def _parsed(text: str) -> Rule:
    name, _, number = text.partition(":")
    if name not in ROBUST_RULES:
        raise unknown("robust rule", name, ROBUST_RULES)
    if name == "median" and number:
        raise InputError(f"the robust rule median takes no number; found {text!r}")
    if name == "trimmed-mean" and not number:
        raise InputError("trimmed-mean needs a number, for instance trimmed-mean:2")
    if not number:
        return ROBUST_RULES[name]()
    kind = int if name == "trimmed-mean" else float
    try:
        value = kind(number)
    except ValueError:
        raise InputError(f"the number of robust rule {name} must be a number; found {number!r}") from None
    return ROBUST_RULES[name](value)
