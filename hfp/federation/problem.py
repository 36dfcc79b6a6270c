"""A user's own data and model: a module with three functions, read by `load_problem`."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from hfp.data.dataset import Dataset, Split
from hfp.data.tensors import unnormalised
from hfp.errors import InputError
from hfp.seeds import derive

FUNCTIONS = ("model", "client_data", "test_data")


@dataclass(frozen=True)
class Problem:
    """What is learnt, as the functions of a module give it.

    ``model()`` returns the full model. ``client_data(client, clients)`` returns one client's samples, floats
    ``[samples, ...]`` of any shape as the model takes them, and labels, int64 ``[samples]``; it is only called where
    that client runs. ``test_data()`` returns such a pair; it is called where the global model is evaluated.
    """

    module: ModuleType

    def model(self, seed: int) -> nn.Module:
        """The full model, its weights drawn from the run's seed.

        Raises:
            InputError: that is no module.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(seed, "weights"))
            model = self.module.model()
        if not isinstance(model, nn.Module):
            raise InputError(f"{self._name}.model() must return a torch.nn.Module; found {type(model).__name__}")
        return model

    def client_data(self, client: int, clients: int) -> Split:
        """One client's data.

        Raises:
            InputError: that is no pair of images and labels, or there are fewer than two.
        """
        return self._split("client_data", self.module.client_data(client, clients))

    def test_data(self) -> Split:
        """The data that the global model is evaluated on.

        Raises:
            InputError: that is no pair of images and labels, or there are fewer than two.
        """
        return self._split("test_data", self.module.test_data())

    @property
    def _name(self) -> str:
        return self.module.__name__

    def _split(self, function: str, found: Any) -> Split:
        where = f"{self._name}.{function}()"
        if not isinstance(found, tuple) or len(found) != 2 or not all(isinstance(part, Tensor) for part in found):
            raise InputError(f"{where} must return a pair of tensors, images and labels; found {type(found).__name__}")
        images, labels = found
        if not images.is_floating_point() or labels.dtype != torch.int64 or labels.dim() != 1:
            raise InputError(
                f"{where} must return float images and int64 labels [samples]; "
                f"found {images.dtype} and {labels.dtype} {list(labels.shape)}"
            )
        if len(images) != len(labels) or len(labels) < 2:
            raise InputError(f"{where} must return as many images as labels, at least 2; found {len(images)}")
        if not images.isfinite().all():
            raise InputError(f"{where} returned images with NaN or infinite values; mend or remove them")
        return Split(images, labels)


def load_problem(path: str | Path) -> Problem:
    """Read the module in a file; its folder may hold others that it imports.

    Raises:
        InputError: there is no such file, or it lacks one of the functions.
    """
    path = Path(path)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise InputError(f"no Python file {path}; give the name of a module beside the app's pyproject.toml")
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    missing = [name for name in FUNCTIONS if not callable(getattr(module, name, None))]
    if missing:
        raise InputError(f"{path.name} must define {', '.join(f'{name}()' for name in missing)}")
    return Problem(module)


def dataset_of(test: Split, classes: int) -> Dataset:
    """The data that the server knows of: the test split alone. Samples are taken as they are."""
    nothing = Split(test.images[:0], test.labels[:0])
    return unnormalised("own", nothing, test, tuple(str(index) for index in range(classes)))
