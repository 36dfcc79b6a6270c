"""A run's folder: configuration, metrics as they come, the global model, a picture. Nothing there is overwritten."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from safetensors.torch import save

from hfp.errors import InputError
from hfp.federation.experiment import Experiment
from hfp.federation.records import RoundRecord
from hfp.methods import State

CONFIGURATION, METRICS, MODEL, PICTURE = "config.json", "metrics.jsonl", "global.safetensors", "accuracy.png"
DIAGNOSTICS = "diagnostics.png"


class RunFolder:
    """Writes one run's files; the metrics grow by one line a round, so that a stopped run keeps what it had."""

    def __init__(self, path: Path, *, resumed: bool = False) -> None:
        """Check that `path` is free, unless a run is `resumed` there; nothing is made yet.

        Raises:
            InputError: something is there already.
        """
        if not resumed and path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise InputError(
                f"output folder {path} is not empty; nothing in it is overwritten: give another with --out"
            )
        self.path = path

    def configure(self, experiment: Experiment) -> None:
        """Make the folder and write the configuration.

        Raises:
            InputError: the folder can't be made or written to.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"output folder {self.path} can't be made: {error.strerror}") from error
        text = json.dumps(experiment.as_dict(), indent=2) + "\n"
        write_atomically(self.path / CONFIGURATION, text.encode())

    def append(self, record: RoundRecord) -> None:
        """Add one round's figures as a line of JSON."""
        with open(self.path / METRICS, "a", encoding="utf-8") as file:
            file.write(json.dumps(record.as_dict()) + "\n")

    def rewrite(self, history: Sequence[RoundRecord]) -> None:
        """Write all rounds' figures anew, as `append` does one by one."""
        lines = "".join(json.dumps(record.as_dict()) + "\n" for record in history)
        write_atomically(self.path / METRICS, lines.encode())

    def save_model(self, experiment: Experiment, state: State) -> None:
        """Write the global model's state, with the names needed to make the model again."""
        metadata = {name: str(experiment.as_dict()[name]) for name in ("model", "dataset", "method")}
        content = save({name: tensor.contiguous().cpu() for name, tensor in state.items()}, metadata)
        write_atomically(self.path / MODEL, content)

    @property
    def diagnostics(self) -> Path:
        """Where the picture of the diagnostics goes."""
        return self.path / DIAGNOSTICS

    @property
    def picture(self) -> Path:
        """Where the picture goes."""
        return self.path / PICTURE


def default_folder(experiment: Experiment, parent: Path = Path("runs")) -> Path:
    """A fresh name from the clock and the experiment: ``runs/20260131-120000-ca-hfp-digits``, numbered when taken."""
    stem = f"{datetime.now():%Y%m%d-%H%M%S}-{experiment.method}-{experiment.dataset_name}"
    number = 1
    while (parent / (stem if number == 1 else f"{stem}-{number}")).exists():
        number += 1
    return parent / (stem if number == 1 else f"{stem}-{number}")


def write_atomically(path: Path, content: bytes) -> None:
    """Write the whole file or nothing: a temporary file beside it, renamed when complete."""
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        unfinished.write_bytes(content)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
