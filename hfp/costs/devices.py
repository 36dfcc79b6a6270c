"""What clients run on: how fast a device computes and moves data, and what a round takes on it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from hfp.errors import InputError, unknown


@dataclass(frozen=True)
class Seconds:
    """The simulated time of one client's round, in seconds."""

    download: float
    compute: float
    upload: float

    @property
    def total(self) -> float:
        """Download, training and upload, one after the other."""
        return self.download + self.compute + self.upload


@dataclass(frozen=True)
class Device:
    """A device profile: multiply-accumulates per second while training, bytes per second down and up."""

    name: str
    macs: float
    down: float
    up: float

    def seconds(self, bytes_down: int, training_macs: int, bytes_up: int) -> Seconds:
        """The time that a round of this size takes."""
        return Seconds(bytes_down / self.down, training_macs / self.macs, bytes_up / self.up)


PROFILES: Mapping[str, Device] = MappingProxyType(
    {
        device.name: device
        for device in (
            Device("workstation", macs=2e12, down=12.5e6, up=12.5e6),
            Device("laptop", macs=2e11, down=6.25e6, up=2.5e6),
            Device("phone", macs=2e10, down=3.75e6, up=1.25e6),
            Device("board", macs=2e9, down=1.25e6, up=0.625e6),
        )
    }
)
"""Orders of magnitude, a factor of ten apart in arithmetic: a GPU on 100 Mbit/s, a laptop on 50 down and 20 up, a phone
on 30 and 10, a single-board computer on 10 and 5. For your own devices give figures instead of a name."""


def parse_device(text: str) -> Device:
    """A profile by name, or ``MACS:DOWN:UP`` in multiply-accumulates and bytes per second, e.g. ``5e9:1e6:5e5``.

    Raises:
        InputError: neither of the two, or a figure that is not positive and finite.
    """
    if ":" not in text:
        if text not in PROFILES:
            raise unknown("device profile", text, PROFILES)
        return PROFILES[text]
    try:
        figures = [float(part) for part in text.split(":")]
    except ValueError:
        figures = []
    if len(figures) != 3 or not all(math.isfinite(figure) and figure > 0 for figure in figures):
        raise InputError(
            f"a device is MACS:DOWN:UP, three positive figures per second, e.g. 5e9:1e6:5e5; found {text!r}"
        )
    return Device(text, *figures)
