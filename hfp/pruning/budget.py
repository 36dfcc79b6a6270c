"""How much of a model shall remain."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from hfp.errors import InputError


@dataclass(frozen=True)
class Budget:
    """What a pruned model may cost, as a share of the full one, or how many channels go; exactly one is given.

    macs: share of the multiply-accumulates of one forward pass that remains. params: share of the parameters.
    bytes: share of the state's bytes (parameters and buffers). latency: share of the time of one forward pass on this
        machine.
    ratio: share of the channels of every coupled group that is removed.

    Raises:
        InputError: none or several are given, or one is not between 0 and 1.
    """

    macs: float | None = None
    params: float | None = None
    bytes: float | None = None
    latency: float | None = None
    ratio: float | None = None

    def __post_init__(self) -> None:
        given = {field.name: value for field in fields(self) if (value := getattr(self, field.name)) is not None}
        if len(given) != 1:
            names = ", ".join(field.name for field in fields(self))
            raise InputError(f"a budget is exactly one of {names}; {len(given)} are given")
        ((name, value),) = given.items()
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise InputError(f"a budget's {name} is a number, not {value!r}")
        if name == "ratio" and not 0 <= value < 1:
            raise InputError(f"a budget's ratio is the share of channels removed, at least 0 and below 1, not {value}")
        if name != "ratio" and not 0 < value <= 1:
            raise InputError(f"a budget's {name} is the share that remains, above 0 and at most 1, not {value}")

    @property
    def kind(self) -> str:
        """The name of what is given."""
        return next(field.name for field in fields(self) if getattr(self, field.name) is not None)

    @property
    def share(self) -> float:
        """The value of what is given."""
        return float(getattr(self, self.kind))

    def part(self, step: int, steps: int) -> Budget:
        """The budget after `step` of `steps` equal steps from the full model."""
        if self.kind == "ratio":
            return Budget(ratio=self.share * step / steps)
        return Budget(**{self.kind: 1 - (1 - self.share) * step / steps})

    def __str__(self) -> str:
        """For instance `macs=0.5`."""
        return f"{self.kind}={self.share:g}"
