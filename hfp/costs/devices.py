"""Device profiles: how fast a client computes and moves data, and how long a round takes on it."""

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
        """The time of download, training and upload, one after the other."""
        return self.download + self.compute + self.upload


@dataclass(frozen=True)
class Device:
    """A device profile.

    Args:
        name: what people type, and what results call it.
        macs: multiply-accumulates per second while training.
        down: bytes per second of a download.
        up: bytes per second of an upload.
        memory: bytes that training may keep at its peak (`hfp.costs.memory`); None if that is not bounded.
    """

    name: str
    macs: float
    down: float
    up: float
    memory: float | None = None

    def seconds(self, bytes_down: int, training_macs: int, bytes_up: int) -> Seconds:
        """Return the time that a round of this size takes."""
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
"""Device profiles by name. They are orders of magnitude, for a GPU, a laptop, a phone and a single-board computer on
their usual lines. For your own devices give figures instead of a name (`parse_device`)."""


def parse_device(text: str) -> Device:
    """Read a device from the name of a profile, or from figures per second as ``MACS:DOWN:UP``.

    A fourth figure, as in ``MACS:DOWN:UP:MEMORY``, is the device's memory in bytes.

    >>> parse_device("5e9:1e6:5e5").down
    1000000.0
    >>> parse_device("5e9:1e6:5e5:64e6").memory
    64000000.0

    Raises:
        InputError: the text is neither of the two, or a figure is not positive and finite.
    """
    if ":" not in text:
        if text not in PROFILES:
            raise unknown("device profile", text, PROFILES)
        return PROFILES[text]
    try:
        figures = [float(part) for part in text.split(":")]
    except ValueError:
        figures = []
    if len(figures) not in (3, 4) or not all(math.isfinite(figure) and figure > 0 for figure in figures):
        raise InputError(
            "a device is MACS:DOWN:UP, three positive figures per second, e.g. 5e9:1e6:5e5, and may have its memory in "
            f"bytes as a fourth; found {text!r}"
        )
    return Device(text, *figures)
