"""Which devices compute. Torch is loaded only to try one."""

from __future__ import annotations

import re
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from hfp.errors import InputError, first_line

if TYPE_CHECKING:
    import torch

KINDS = ("cpu", "cuda", "hpu", "mtia", "npu", "privateuseone", "xla", "xpu")
"""The kinds of devices that compute. A package may add others by an entry point ``torch.backends``."""

_NAME = re.compile(r"(?!meta)([a-z]+)(?::(0|[1-9][0-9]{0,2}))?")
_LARGEST = 127  # PyTorch takes larger numbers for others, as cuda:300 for cuda:44


def check_device(name: str) -> None:
    """Refuse a name that no device can have. Whether this machine has the device is known when it is used.

    >>> check_device("cuda:1")

    Raises:
        InputError: the name has another form, its kind is not known, or it lacks float64.
    """
    found = _NAME.fullmatch(name)
    if found is None or int(found[2] or 0) > _LARGEST:
        raise InputError(f"device must be one that computes, such as cpu, cuda or cuda:1; found {name!r}")
    if found[1] == "mps":
        raise InputError(f"device {name!r} has no float64, in which sums are taken here; use cpu")
    if found[1] not in KINDS and not entry_points(group="torch.backends"):
        raise InputError(
            f"there is no device {name!r}; PyTorch computes on {', '.join(KINDS)}, and on cuda:1 and so on"
        )


def working_device(name: str) -> torch.device:
    """Return a device of this machine that computes.

    >>> working_device("cpu")
    device(type='cpu')

    Raises:
        InputError: this machine has no such device, or it can't be used.
    """
    import torch

    try:
        device = torch.zeros(1, device=torch.device(name)).device  # with the number of the GPU
    except (RuntimeError, AssertionError, ImportError) as error:
        raise InputError(f"device {name!r} can't be used here ({first_line(error)}); use cpu") from error
    if device.type == "meta":
        raise InputError(f"device {name!r} holds no values; use cpu")
    return device
