"""Sets how many of the processor's threads a run computes with, and counts its cores."""

from __future__ import annotations

import os

import torch

from hfp.costs.macs import macs
from hfp.federation.jobs.check import check_threads
from hfp.federation.setup import Federation

SMALL_STEP = 50_000_000  # multiply-accumulates of a forward batch below which threads wait more than they work


def use_threads(threads: int | None, federation: Federation) -> None:
    """Compute with this many threads, by default with one where a step of the full model is too small to share.

    Raises:
        InputError: the number is below 1, or above `MOST_THREADS`.
    """
    if threads is not None:
        check_threads(threads)
    if threads is not None or _step_work(federation) < SMALL_STEP:
        torch.set_num_threads(threads or 1)


def cores() -> int:
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _step_work(federation: Federation) -> int:
    """Count the multiply-accumulates of one batch through the full model."""
    return macs(federation.model, federation.context.example) * federation.experiment.batch_size
