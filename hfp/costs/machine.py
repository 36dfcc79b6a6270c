"""Tells of the machine that computes, as opposed to a simulated client: its device, and the memory that it gave."""

from __future__ import annotations

import sys

import torch


def device_name(device: str | torch.device) -> str:
    """Return what a GPU of NVIDIA is sold as, such as ``NVIDIA H200``; the name in PyTorch for other devices.

    >>> device_name("cpu")
    'cpu'
    """
    device = torch.device(device)
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def process_peak_bytes() -> int | None:
    """Return the most memory that this process has had at one time, in bytes; None where the system doesn't say.

    >>> process_peak_bytes() is None or process_peak_bytes() > 0
    True
    """
    try:
        import resource
    except ImportError:  # Windows
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(most) if sys.platform == "darwin" else 1024 * most


def device_peak_bytes(device: torch.device) -> int | None:
    """Return the most memory that tensors on a GPU have had at one time, in bytes; None for the processor.

    >>> device_peak_bytes(torch.device("cpu")) is None
    True
    """
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
