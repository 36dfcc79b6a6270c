"""How much of a model shall remain."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from html import escape
from numbers import Real
from typing import Any

from hfp.errors import InputError
from hfp.settings import shown

KINDS = {
    "macs": "share of the multiply-accumulates that remains",
    "params": "share of the parameters that remains",
    "bytes": "share of the state's bytes that remains",
    "latency": "share of the time of a forward pass that remains, measured on the model's device",
    "ratio": "share of the channels removed: of each coupled group by the ranking layer, of all by the others",
}
"""What a budget can limit, and what each number means."""


@dataclass(frozen=True, repr=False)
class Budget:
    """What a pruned model may cost, as shares of the full one, or how many channels go.

    Several costs may be given at once: the pruned model then meets all of them. A budget is met from below, as near as
    the model's steps allow; the report says how near that is.

    Args:
        macs: share of the multiply-accumulates of one forward pass that remains.
        params: share of the parameters that remains.
        bytes: share of the bytes of the state (parameters and buffers) that remains.
        latency: share of the time of one forward pass that remains, measured on the device that holds the model.
        ratio: share of the channels removed, of each coupled group by the ranking "layer" and of all together
            by the others; it stands alone.
        tolerance: how far below a cost's limit the result may be, as a share of the limit. By default any distance is
            a result. With 0.02, a result below 98 % of the nearest limit is an error.

    Raises:
        InputError: nothing is given, a number is out of its range, or ``ratio`` is given with another one.

    >>> from hfp import Budget
    >>> Budget(macs=0.5, params=0.6)
    Budget(macs=0.5, params=0.6)
    >>> Budget(macs=50)
    Traceback (most recent call last):
    hfp.errors.InputError: a budget's macs is the share that remains, above 0 and at most 1, not 50
    """

    macs: float | None = None
    params: float | None = None
    bytes: float | None = None
    latency: float | None = None
    ratio: float | None = None
    tolerance: float | None = None

    def __post_init__(self) -> None:
        if not self.limits:
            raise InputError(f"a budget needs at least one of {', '.join(KINDS)}; none is given")
        for name, given in {**self.limits, **({} if self.tolerance is None else {"tolerance": self.tolerance})}.items():
            value = _number(name, given)
            object.__setattr__(self, name, value)
            if name == "ratio" and not 0 <= value < 1:
                raise InputError(
                    f"a budget's ratio is the share of channels removed, at least 0 and below 1, not {value}"
                )
            if name == "tolerance" and not 0 <= value < 1:
                raise InputError(f"a budget's tolerance is a share of its limit, at least 0 and below 1, not {value}")
            if name not in ("ratio", "tolerance") and not 0 < value <= 1:
                raise InputError(f"a budget's {name} is the share that remains, above 0 and at most 1, not {value}")
        if self.ratio is not None and (len(self.limits) > 1 or self.tolerance is not None):
            raise InputError("a budget's ratio says how many channels go; it can't be given with another limit")

    @property
    def limits(self) -> Mapping[str, float]:
        """What is limited: name -> the number given."""
        return {name: value for name in KINDS if (value := getattr(self, name)) is not None}

    @property
    def costs(self) -> Mapping[str, float]:
        """The limits that are shares of a cost: all but ``ratio``."""
        return {name: value for name, value in self.limits.items() if name != "ratio"}

    def part(self, step: int, steps: int) -> Budget:
        """The budget after `step` of `steps` equal steps from the full model; the last one alone has a tolerance."""
        if step == steps:
            return self
        if self.ratio is not None:
            return Budget(ratio=self.ratio * step / steps)
        return Budget(**{name: 1 - (1 - share) * step / steps for name, share in self.costs.items()})

    def distances(self, costs: Mapping[str, tuple[float, float]]) -> dict[str, float]:
        """How far below each limit a model is, as a share of the full model's cost; negative where it is above.

        costs: name -> (of the full model, of the pruned one).
        """
        return {
            name: share - costs[name][1] / costs[name][0]
            for name, share in self.costs.items()
            if name in costs and costs[name][0]
        }

    def __str__(self) -> str:
        """For instance `macs=0.5`, or `macs=0.5, params=0.6`."""
        return ", ".join(f"{name}={value:g}" for name, value in asdict(self).items() if value is not None)

    def __repr__(self) -> str:
        return f"Budget({self})"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th>{name}</th><td>{value:g}</td><td>{escape(KINDS[name])}</td></tr>"
            for name, value in self.limits.items()
        )
        return f"<table>{rows}</table>"


def _number(name: str, value: Any) -> float:
    """Return one of a budget's numbers, which may be one of NumPy's, as one of Python's.

    Raises:
        InputError: it is no finite number.
    """
    if type(value) in (int, float) and abs(value) <= sys.float_info.max:
        return value
    number = float(value) if isinstance(value, Real) and not isinstance(value, int) else math.nan
    if not math.isfinite(number):
        raise InputError(f"a budget's {name} is a number, not {shown(value)}")
    return number
