"""Refuses numbers of jobs and threads that can't be used, before torch is loaded."""

from __future__ import annotations

import os
import sys

from hfp.errors import InputError
from hfp.federation.experiment import MOST_THREADS


def check_threads(threads: int) -> None:
    """Refuse a number of threads that no machine computes one step with.

    Raises:
        InputError: it is below 1, or above `MOST_THREADS`.
    """
    if not 1 <= threads <= MOST_THREADS:
        raise InputError(f"threads must be between 1 and {MOST_THREADS}; found {threads}")


def check_jobs(jobs: int, device: str) -> None:
    """Refuse a number of jobs that can't be used on a device.

    Raises:
        InputError: it is below 1, or above 1 on a GPU or on a system where processes can't inherit sockets.
    """
    if not isinstance(jobs, int) or jobs < 1:
        raise InputError(f"jobs must be a whole number of at least 1; found {jobs!r}")
    if jobs > 1 and device.partition(":")[0] != "cpu":
        raise InputError(
            f"jobs share out the cores of a processor, so jobs must be 1 on {device}; found {jobs}: "
            "on a GPU clients_in_flight says how many clients train at once"
        )
    if jobs > 1 and os.name != "posix":
        raise InputError(f"more than 1 job needs a system such as Linux or macOS; this is {sys.platform}")
