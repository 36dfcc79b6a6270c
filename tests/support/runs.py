"""What tests of run folders share: small runs, and digits as image files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

import hfp
from hfp.federation.records import Run
from hfp.federation.rounds import full_cost, rounds
from hfp.federation.setup import set_up
from hfp.results.folder import RunFolder
from hfp.results.model_files import ModelFiles

QUICK = {"train_images": 200, "clients": 2, "rounds": 2, "head_start": 2.0, "partition": "iid", "batch_size": 16}


def kept_run(folder: Path, *, save_clients: bool = False, **settings: object) -> Run:
    """Run an experiment and keep it in a folder, as ``hfp run`` does."""
    experiment = hfp.Experiment(**{**QUICK, **settings})
    federation, files, history = set_up(experiment), RunFolder(folder), []
    files.configure(experiment)
    models = ModelFiles(folder, save_clients=save_clients)
    models.run_began(federation, ())
    for outcome in rounds(federation, None, models.update_came, models.state_settled):
        history.append(outcome.record)
        files.append(outcome.record)
        files.save_model(experiment, outcome.state.weights)
    return Run(experiment, tuple(history), outcome.state.weights, full_cost(federation, len(history)))


def as_pictures(digits: Tensor) -> list[Image.Image]:
    """Digits `[samples, 1, 8, 8]` of 0 to 16 as images of 0 to 255."""
    return [Image.fromarray(np.uint8((digit[0].numpy() * (255 / 16)).round())) for digit in digits]
