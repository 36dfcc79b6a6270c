"""What is needed to use a run's models without the run: plain JSON in its folder, written once, read strictly."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hfp.atomic import write_atomically
from hfp.errors import InputError
from hfp.federation.experiment import GIVEN
from hfp.federation.setup import Federation
from hfp.methods import Method, create_method
from hfp.models import create_model, models
from hfp.models.names import is_factory
from hfp.models.source import from_factory, timm_model
from hfp.reconstruct import TimmModel
from hfp.results.files import DESCRIPTION
from hfp.results.inputs import FLOAT, UINT8, ModelInput

FORMAT = 1
_MOST = 100_000  # of any side or number of classes: larger ones could ask for absurd amounts of memory

ModelSource = str | nn.Module | Callable[[], nn.Module]


@dataclass(frozen=True)
class ModelDescription:
    """How to make a run's full model again, and what goes in and comes out.

    Args:
        model: a name, ``module:factory``, or after ``python:`` the name of what was given in Python.
        classes: the name of every output.
        input: what the model takes.
        hfp: the version that wrote it.
        prepared_by: the method that made the full model of the one that is named (`hfp.methods.Method.prepare`); empty
            where it is the named one.
    """

    model: str
    classes: tuple[str, ...]
    input: ModelInput
    hfp: str
    prepared_by: str = ""

    @classmethod
    def of(cls, federation: Federation) -> ModelDescription:
        """Describe a federation's models."""
        model = federation.experiment.as_dict()["model"]
        prepares = type(federation.method).prepare is not Method.prepare
        return cls(
            model, federation.dataset.classes, ModelInput.of(federation.dataset), version("hfp"),
            federation.method.name if prepares else "",
        )  # fmt: skip

    @property
    def named(self) -> bool:
        """Whether the name says how to make the model; else a person has to give it, since making it runs code."""
        return not self.model.startswith(GIVEN) and not is_factory(self.model)

    @property
    def timm(self) -> TimmModel | None:
        """What a file may call the model, if it is one of timm's."""
        if not self.named or self.model in models() or self.prepared_by:
            return None
        return timm_model(self.model, len(self.classes), self.input.shape[0])

    def skeleton(self, given: ModelSource | None = None) -> nn.Module:
        """Make the full model's architecture, with weights of no meaning.

        Args:
            given: the model, where its name does not say how to make it: a module (used as it is), a callable, or
                ``module:factory``.

        Raises:
            InputError: the model has to be given, or can't be made.
        """
        with torch.random.fork_rng(devices=[]):
            model = self._named_or(given)
            if not self.prepared_by:
                return model
            return create_method(self.prepared_by).prepare(model, torch.zeros(1, *self.input.shape))

    def _named_or(self, given: ModelSource | None) -> nn.Module:
        if given is None and self.named:
            return create_model(self.model, len(self.classes), self.input.shape[0])
        if given is None:
            raise InputError(self._asked_for)
        if isinstance(given, str) and not is_factory(given):
            return create_model(given, len(self.classes), self.input.shape[0])
        return from_factory(given)

    @property
    def _asked_for(self) -> str:
        if self.model.startswith(GIVEN):
            return (
                f"the run's model {self.model.removeprefix(GIVEN)} was given in Python, and files don't keep it; "
                "give it again: model=MODULE in Python, --model module:factory on the command line"
            )
        return (
            f"the run's model is {self.model}, whose code is not run for a file's sake; if you trust it, give it: "
            f"model={self.model!r} in Python, --model {self.model} on the command line"
        )

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, as `parse` takes them."""
        given = self.input
        return {
            "format": FORMAT,
            "hfp": self.hfp,
            "model": self.model,
            "classes": list(self.classes),
            "input": {
                "shape": list(given.shape),
                "dtype": given.dtype,
                "largest": given.largest,
                "mean": list(given.mean),
                "std": list(given.std),
            },
            **({"prepared_by": self.prepared_by} if self.prepared_by else {}),
        }

    @classmethod
    def parse(cls, found: Any, where: str) -> ModelDescription:
        """Read what `as_dict` gave, and nothing else.

        Raises:
            InputError: it is of another format version, or damaged; `where` is part of the message.
        """
        if not isinstance(found, dict) or "format" not in found:
            raise InputError(f"{where} is no description of a model; give the folder of a run")
        if found["format"] != FORMAT:
            raise InputError(
                f"{where} is of format version {found['format']!r}, written by hfp {found.get('hfp')!r}; this hfp "
                f"{version('hfp')} reads version {FORMAT}: use a matching version of hfp"
            )
        try:
            return cls._parsed(found)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"{where} is damaged: {type(error).__name__}: {error}") from error

    @classmethod
    def _parsed(cls, found: Mapping[str, Any]) -> ModelDescription:
        expected = {"format", "hfp", "model", "classes", "input"}
        _demand(found.keys() - {"prepared_by"} == expected, "other entries than expected")
        given = found["input"]
        _demand(given.keys() == {"shape", "dtype", "largest", "mean", "std"}, "other entries of input than expected")
        prepared_by = found.get("prepared_by", "")
        texts = [found["hfp"], found["model"], prepared_by, *found["classes"]]
        _demand(all(isinstance(text, str) for text in texts), "names must be text")
        _demand(0 < len(found["classes"]) <= _MOST, f"expected 1 to {_MOST} classes")
        shape, mean, std = given["shape"], given["mean"], given["std"]
        _demand(bool(shape) and all(type(side) is int and 0 < side <= _MOST for side in shape), f"shape {shape!r}")
        _demand(len(mean) == len(std) == shape[0], "expected one mean and std per channel")
        _demand(all(type(value) is float and math.isfinite(value) for value in (*mean, *std)), "mean and std")
        _demand(all(value > 0 for value in std), "std must be above 0")
        _demand(given["dtype"] in (UINT8, FLOAT), f"dtype {given['dtype']!r}")
        largest = given["largest"]
        fits = largest is None if given["dtype"] == FLOAT else type(largest) is int and 0 < largest <= 255
        _demand(fits, f"largest {largest!r}")
        taken = ModelInput(tuple(shape), given["dtype"], largest, tuple(mean), tuple(std))
        return cls(found["model"], tuple(found["classes"]), taken, found["hfp"], prepared_by)


def write_description(folder: Path, description: ModelDescription) -> None:
    """Write ``model.json``."""
    text = json.dumps(description.as_dict(), indent=2, allow_nan=False) + "\n"
    write_atomically(folder / DESCRIPTION, text.encode())


def read_description(folder: Path) -> ModelDescription:
    """Read ``model.json``.

    Raises:
        InputError: it is missing, damaged or of another format version.
    """
    return ModelDescription.parse(read_json(folder / DESCRIPTION), str(folder / DESCRIPTION))


def read_json(path: Path) -> Any:
    """Read the value in a file of JSON.

    Raises:
        InputError: the file is missing or holds something else.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"there is no {path.name} in {path.parent}; give the folder of a run of this hfp") from None
    except OSError as error:
        raise InputError(f"{path} can't be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged: {error}") from error


def _demand(holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(what)
