"""Say where a number must lie."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Interval:
    """The numbers between two ends, as mathematics writes them: a square bracket includes its end.

    >>> 1 in Interval("[0, 1)"), 0 in Interval("[0, 1)")
    (False, True)
    >>> Interval("(0, inf)").words(float)
    'a finite number above 0'
    """

    text: str

    def __contains__(self, value: float) -> bool:
        """Return whether a number lies between the ends. NaN lies nowhere."""
        least, most = self._ends
        return (least <= value if self.text[0] == "[" else least < value) and (
            value <= most if self.text[-1] == "]" else value < most
        )

    def words(self, kind: type) -> str:
        """Return the interval as the end of "must be …", for numbers of a kind."""
        least, most = self._ends
        if most < math.inf:
            return f"in {self.text}"
        if kind is int:
            return f"at least {least:g}"
        return f"a finite number {'of at least' if self.text[0] == '[' else 'above'} {least:g}"

    @property
    def _ends(self) -> tuple[float, float]:
        least, most = self.text[1:-1].split(",")
        return float(least), float(most)
