"""What a comparison's run is known by, which is whatever changes its result."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from hfp.data import Dataset, load_dataset
from hfp.data.fingerprint import fingerprint
from hfp.errors import InputError
from hfp.federation.experiment import Experiment
from hfp.methods import create_method
from hfp.methods.interface.registry import method_class
from hfp.models.names import is_factory
from hfp.models.source import from_factory, imported
from hfp.seeds import making_seeded

REASONS: Mapping[str, str] = {
    "data": "other data",
    "threads": "another number of threads",
    "hfp": "another version of hfp",
    "weights": "other weights",
    "clients_file": "another clients file",
    "code": "other code of the model or method",
}
"""The parts of what a run was made with, and what is said when a result was made with others."""

_LIBRARIES = ("hfp", "torch", "torchvision", "timm", "builtins", "abc", "typing")  # their code is known by versions
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
        self._models: dict[tuple[str, int], str] = {}

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
            **self._own_code(experiment),
        }

    def _own_code(self, experiment: Experiment) -> dict[str, Any]:
        """Hash what a user's own model and method are; empty where both are the libraries'."""
        code = {"method": _source(method_class(experiment.method).__mro__)}
        if isinstance(experiment.model, str) and is_factory(experiment.model):
            key = (experiment.model, experiment.seed)
            if key not in self._models:
                self._models[key] = _model_digest(*key)
            code["model"] = self._models[key]
        code = {name: digest for name, digest in code.items() if digest}
        return {"code": code} if code else {}

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


def _model_digest(spec: str, seed: int) -> str:
    """Hash a model by its structure, its first weights, and the source of its factory and classes."""
    with making_seeded(seed, "weights"):
        model = from_factory(spec)
    digest = hashlib.blake2b(repr(model).encode(), digest_size=16)
    digest.update(_source((imported(spec), *(type(module) for module in model.modules()))).encode())
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _source(things: Iterable[Any]) -> str:
    """Hash the files in which a user's own classes and functions are; empty where there are none."""
    files = set()
    for thing in things:
        if (getattr(thing, "__module__", None) or "").partition(".")[0] not in _LIBRARIES:
            with suppress(OSError, TypeError):  # what was typed in has no file
                files.add(inspect.getfile(thing))
    digests = sorted(_hash_of("code", Path(file)) for file in files)
    return hashlib.blake2b("".join(digests).encode(), digest_size=16).hexdigest() if digests else ""
