"""What a comparison's run is known by, which is whatever changes its result."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hfp.data import Dataset, load_dataset
from hfp.data.fingerprint import fingerprint
from hfp.errors import InputError
from hfp.federation.experiment import Experiment
from hfp.methods import create_method

REASONS: Mapping[str, str] = {
    "data": "other data",
    "threads": "another number of threads",
    "hfp": "another version of hfp",
    "weights": "other weights",
    "clients_file": "another clients file",
}
"""The parts of what a run was made with, and what is said when a result was made with others."""

_PLACES = ("data_root", "download", "weights", "clients_file")  # where something lies; what lies there is what counts


def plain(experiment: Experiment) -> dict[str, Any]:
    """Turn an experiment into plain values, with all of its method's options and without the places of files."""
    values = {name: value for name, value in experiment.as_dict().items() if name not in _PLACES}
    method = create_method(experiment.method, **experiment.options)
    options = {entry.name: getattr(method, entry.name) for entry in dataclasses.fields(method)}  # type: ignore[arg-type]
    return json.loads(json.dumps({**values, "options": options}))


class Identities:
    """Finds out what experiments are made with: the content of their data, threads, the version of hfp, weights.

    Data that several experiments share is read once.
    """

    def __init__(self, threads: int) -> None:
        """Note how many threads each run computes with."""
        self._threads = threads
        self._data: dict[tuple[Any, ...], str] = {}

    def made_with(self, experiment: Experiment) -> dict[str, Any]:
        """Return what a run of the experiment is made with, by the names of `REASONS`.

        Raises:
            InputError: the data, or the file of the weights or of the clients, can't be read.
        """
        values = experiment.as_dict()
        files = {name: values[name] for name in ("weights", "clients_file")}
        return {
            "data": self._fingerprint(experiment),
            "threads": self._threads,
            "hfp": version("hfp"),
            **{name: _hash_of(name, Path(file)) for name, file in files.items() if file is not None},
        }

    def _fingerprint(self, experiment: Experiment) -> str:
        if isinstance(experiment.dataset, Dataset):
            return fingerprint(experiment.dataset)
        asked = {
            "root": experiment.data_root,
            "limit": experiment.train_images,
            "download": experiment.download,
            "seed": experiment.seed,
            "image_size": experiment.image_size,
        }
        key = (experiment.dataset, *asked.values())
        if key not in self._data:
            self._data[key] = fingerprint(load_dataset(experiment.dataset, **asked))  # type: ignore[arg-type]
        return self._data[key]


def _hash_of(name: str, path: Path) -> str:
    try:
        with path.open("rb") as file:
            digest = hashlib.blake2b(digest_size=16)
            while part := file.read(2**20):
                digest.update(part)
    except OSError as error:
        raise InputError(f"{name} {path} can't be read: {error.strerror}") from error
    return digest.hexdigest()
