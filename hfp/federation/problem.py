"""Reads a user's own data and model from a module with three functions."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from hfp.data.dataset import Dataset, Split
from hfp.data.tensors import unnormalised
from hfp.errors import InputError
from hfp.seeds import making_seeded

FUNCTIONS = ("model", "client_data", "test_data")


@dataclass(frozen=True)
class Problem:
    """What is learnt, as the functions of a module give it.

    ``model()`` returns the full model. ``client_data(client, clients)`` returns one client's samples and labels: floats
    ``[samples, ...]`` of the shape that the model takes, and int64 ``[samples]``. It is only called where that client
    runs. ``test_data()`` returns such a pair too, and is called where the global model is evaluated.

    Args:
        module: the module with these functions.
    """

    module: ModuleType

    def model(self, seed: int) -> nn.Module:
        """Make the full model, whose weights are drawn from the run's seed.

        Raises:
            InputError: the function returns no module.
        """
        with making_seeded(seed, "weights"):
            model = self.module.model()
        if not isinstance(model, nn.Module):
            raise InputError(f"{self._name}.model() must return a torch.nn.Module; found {type(model).__name__}")
        return model

    def client_data(self, client: int, clients: int) -> Split:
        """Load one client's data.

        Raises:
            InputError: the function returns no pair of images and labels, or fewer than two of them.
        """
        return self._split("client_data", self.module.client_data(client, clients))

    def test_data(self) -> Split:
        """Load the data that the global model is evaluated on.

        Raises:
            InputError: the function returns no pair of images and labels, or fewer than two of them.
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
    """Read the module in a file. It may import other modules from its folder.

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
    with _known(module):
        spec.loader.exec_module(module)
    missing = [name for name in FUNCTIONS if not callable(getattr(module, name, None))]
    if missing:
        raise InputError(f"{path.name} must define {', '.join(f'{name}()' for name in missing)}")
    return Problem(module)


@contextmanager
def _known(module: ModuleType) -> Iterator[None]:
    """Let the module be found by its name while inside, as dataclasses do where their annotations are texts."""
    before = sys.modules.get(module.__name__)
    sys.modules[module.__name__] = module
    try:
        yield
    finally:
        if before is None:
            del sys.modules[module.__name__]
        else:
            sys.modules[module.__name__] = before


def dataset_of(test: Split, classes: int) -> Dataset:
    """Make the data set that the server knows, which is the test split alone. Samples are used as they are."""
    nothing = Split(test.images[:0], test.labels[:0])
    return unnormalised("own", nothing, test, tuple(str(index) for index in range(classes)))
