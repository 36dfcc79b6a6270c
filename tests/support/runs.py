"""What tests of run folders share: small runs, and digits as image files."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

import hfp
from hfp.federation.records import RoundRecord, Run
from hfp.federation.rounds import Course
from hfp.federation.setup import set_up
from hfp.results.folder import RunFolder
from hfp.results.keeping import RunFiles
from hfp.results.model_files import ModelFiles

OF_THE_MACHINE = {"seconds": 0.0, "process_peak_bytes": None, "device_peak_bytes": None}
"""The figures of a round that are of the machine, and differ between two runs of one experiment."""
QUICK = {"train_images": 200, "clients": 2, "rounds": 2, "head_start": 2.0, "partition": "iid", "batch_size": 16}


def kept_run(folder: Path, *, save_clients: bool = False, **settings: object) -> Run:
    """Run an experiment and keep it in a folder, as ``hfp run`` does."""
    experiment, files = hfp.Experiment(**{**QUICK, **settings}), RunFolder(folder)
    federation = set_up(experiment)
    with files.taken():
        files.configure(experiment, {"threads": 1, "workers": 0})
        observers = [ModelFiles(folder, save_clients=save_clients), RunFiles(files)]
        return Course(federation, observers=observers).run()


def timeless(history: Iterable[RoundRecord]) -> list[RoundRecord]:
    """The rounds without the figures of the machine."""
    return [dataclasses.replace(record, **OF_THE_MACHINE) for record in history]


def as_pictures(digits: Tensor) -> list[Image.Image]:
    """Digits `[samples, 1, 8, 8]` of 0 to 16 as images of 0 to 255."""
    return [Image.fromarray(np.uint8((digit[0].numpy() * (255 / 16)).round())) for digit in digits]
