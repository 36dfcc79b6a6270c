"""A program that kills runs: `python kill_runs.py WAY METHOD FOLDER SETTINGS`, SETTINGS being an experiment's as JSON.

Torch is loaded once, and every run is a fork of this process that is killed (SIGKILL) and then resumed in the same
folder, again and again until it is finished. WAY is ``writes`` (at every step of writing a file) or ``moments`` (at
random ones).
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from hfp import Experiment, simulate


def run(experiment: Experiment, folder: Path, before=lambda: None) -> int:
    """Fork a run; returns its process."""
    process = os.fork()
    if process == 0:
        try:
            before()
            simulate(experiment, resume=folder)
        except BaseException as error:
            print(type(error), error, flush=True)
            os._exit(1)
        os._exit(0)
    return process


def ended(process: int) -> bool:
    """Whether a run ended by itself, and not by being killed."""
    status = os.waitpid(process, 0)[1]
    if os.WIFSIGNALED(status):
        return False
    assert os.WEXITSTATUS(status) == 0, "a resumed run failed"
    return True


def die_at(call: int):
    """Have the process kill itself at its n-th flush, rename or removal of a file."""
    left = [call]

    def deadly(name):
        real = getattr(os, name)

        def replaced(*arguments, **settings):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **settings)

        return replaced

    def install():
        for name in ("fsync", "replace"):
            setattr(os, name, deadly(name))

    return install


def at_writes(experiment: Experiment, folder: Path) -> int:
    """Kill a run at its first write, the resumed one at its second, and so on, until one ends before it is killed."""
    kills = 0
    while not ended(run(experiment, folder, die_at(1 + kills))):
        kills += 1
    return kills


def at_moments(experiment: Experiment, folder: Path, least: int = 20) -> int:
    """Kill runs at random moments, at least so often in all; runs that end are followed by new ones."""
    begun, draw = time.perf_counter(), random.Random(0)
    assert ended(run(experiment, folder / "timed"))
    longest, kills, number = time.perf_counter() - begun, 0, 0
    while True:
        process = run(experiment, folder / str(number))
        if kills < least:
            time.sleep(draw.uniform(0, longest / 2))
            os.kill(process, signal.SIGKILL)
        if ended(process):
            number += 1
            if kills >= least:
                return kills
        else:
            kills += 1


if __name__ == "__main__":
    way, method, folder, settings = sys.argv[1:]
    torch.set_num_threads(1)
    experiment = Experiment(method=method, **json.loads(settings))
    print(json.dumps({"writes": at_writes, "moments": at_moments}[way](experiment, Path(folder))))
