"""Ratios to references that are measured in the same run, with their median, spread and target."""

from __future__ import annotations

import ctypes
import gc
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from data_files import Line, put

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # of malloc.h


def seconds(work: Callable[[], object], clock: Callable[[], float] = time.process_time) -> float:
    """Return how long `work` takes, by default in processor time of this process."""
    gc.collect()
    start = clock()
    work()
    return clock() - start


def keep_freed_memory() -> None:
    """Have glibc keep what this process frees, so that asking the system for it again counts for neither side.

    How often that happens differs from run to run, and takes up to a tenth of the time of training.
    """
    if platform.libc_ver()[0] == "glibc":
        library = ctypes.CDLL(None)
        for setting, value in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, 2**28)):
            library.mallopt(setting, value)


@dataclass(frozen=True)
class Figure:
    """A ratio to be measured, and the target that it is to reach: "<= 2" or ">= 2".

    `ratio` measures both of its sides, one after the other, each time that it is called. A ratio that is counted, or
    whose cost comes only once, is measured `once`. The target may be empty.
    """

    name: str
    target: str
    ratio: Callable[[], float]
    once: bool = False

    def measure(self, repeats: int) -> Line:
        """Return the median and the spread of the ratio as a line of the data file, after one unmeasured run."""
        repeats = 1 if self.once else repeats
        if not self.once:
            self.ratio()
        found = [self.ratio() for _ in range(repeats)]
        median = statistics.median(found)
        return {
            "figure": self.name,
            "repeats": str(repeats),
            "ratio": f"{median:.2f}",
            "lowest": f"{min(found):.2f}",
            "highest": f"{max(found):.2f}",
            "target": self.target,
            "met": self._met(median),
        }

    def _met(self, median: float) -> str:
        if not self.target:
            return ""
        bound = float(self.target[3:])
        return "yes" if (median <= bound if self.target[0] == "<" else median >= bound) else "no"


def shown(figure: Figure, repeats: int, data: Path | None) -> None:
    """Measure a figure, print it, and write it to the data file where there is one."""
    line = figure.measure(repeats)
    target = f", target {figure.target}" if figure.target else ""
    print("{figure:<64} {ratio:>6} ({lowest} to {highest})".format(**line) + target, flush=True)
    if data:
        put(data, ("figure",), [line])
