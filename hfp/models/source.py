"""Full models by what a person gives: a name of ours, timm's or torchvision's, `module:factory`, or a module itself."""

from __future__ import annotations

import copy
import importlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torchvision
from torch import nn

from hfp.errors import InputError
from hfp.models import create_model, models
from hfp.models.pretrained import pretrained_model
from hfp.models.weights import load_weights
from hfp.reconstruct import TimmModel

RANDOM = "random weights"
"""Where the weights of a model are from that is named and nothing else is said."""

_SOURCES = ("timm", "torchvision")


@dataclass(frozen=True)
class FullModel:
    """A model, what a file may call it (None: its reader brings it), and the shape of its usual input."""

    model: nn.Module
    timm: TimmModel | None
    shape: tuple[int, int, int]


def full_model(
    spec: str,
    *,
    num_classes: int | None = None,
    in_channels: int = 3,
    image_size: int | None = None,
    pretrained: bool = False,
    weights: Path | None = None,
) -> FullModel:
    """Make the model that `spec` names.

    Args:
        spec: a model's name, or `module:factory` for a callable without arguments that returns a module; modules are
            looked for in the working directory too.
        num_classes: number of logits; by default what the model usually has (our own: 10).
        in_channels: channels of the images.
        image_size: side of the images; by default the usual one.
        pretrained: load timm's weights (a download).
        weights: a file with the full state (`hfp.models.weights.read_weights`).

    Raises:
        InputError: no such model, or one that can't be made so; a file that is not its state.
    """
    known = timm_model(spec, num_classes, in_channels)
    if pretrained and known is None:
        raise InputError("--pretrained loads timm's weights; give --weights FILE for another model")
    if known is not None:
        make = pretrained_model if pretrained else timm.create_model
        model = make(known.name, **known.arguments)
    elif is_factory(spec):
        model = from_factory(spec)
    else:
        model = create_model(spec, num_classes or _usual_classes(spec), in_channels)
    if weights is not None:
        load_weights(model, weights)
    usual = getattr(model, "pretrained_cfg", {}).get("input_size", (3, 32 if spec in models() else 224))[-1]
    size = image_size or usual
    return FullModel(model, known, (in_channels, size, size))


def classifier(
    source: str | nn.Module | Callable[[], nn.Module],
    num_classes: int,
    in_channels: int,
    *,
    pretrained: bool = False,
    weights: str | os.PathLike[str] | None = None,
) -> tuple[nn.Module, str]:
    """The model that an experiment trains, and a sentence on where its weights are from.

    Args:
        source: a name (`hfp.models.create_model`), `module:factory`, a module (it is copied and starts with its own
            weights) or a callable without arguments that returns one. Random weights are drawn from torch's generator.
        num_classes: of the data. A module of one's own has to have as many outputs, or more.
        in_channels: of the data.
        pretrained: load timm's weights (a download).
        weights: a file with the full state (`hfp.models.weights.read_weights`).

    Raises:
        InputError: no such model, one that can't be made so, or a file that is not its state.
    """
    if pretrained:
        if weights is not None:
            raise InputError("give either pretrained or weights, not both: each decides where training starts")
        model, origin = _pretrained(source, num_classes, in_channels), "timm's pretrained weights"
    elif isinstance(source, nn.Module):
        model, origin = copy.deepcopy(source).cpu(), "the given module's weights"
    elif not isinstance(source, str) or is_factory(source):
        model, origin = from_factory(source), "the factory's weights"
    else:
        model, origin = create_model(source, num_classes, in_channels), RANDOM
    if weights is not None:
        origin = load_weights(model, weights, new_classifier=True)
    return model, origin


def is_factory(spec: str) -> bool:
    """Whether a text is `module:factory`, rather than the name of a model."""
    return ":" in spec and spec.partition(":")[0] not in _SOURCES


def is_model(spec: str) -> bool:
    """Whether a text is the name of a model, or `module:factory`."""
    if is_factory(spec) or spec in models() or timm.is_model(spec.removeprefix("timm:")):
        return True
    return spec.removeprefix("torchvision:") in torchvision.models.list_models()


def from_factory(source: str | Callable[[], nn.Module]) -> nn.Module:
    """The module that a callable without arguments gives, or `module:factory`, looked for in the working directory too.

    Raises:
        InputError: it can't be imported, or gives no module.
    """
    found: Any = imported(source) if isinstance(source, str) else source
    name = source if isinstance(source, str) else getattr(source, "__qualname__", repr(source))
    try:
        model = found if isinstance(found, nn.Module) or not callable(found) else found()
    except TypeError as error:
        raise InputError(f"model {name} can't be called without arguments: {error}") from error
    if not isinstance(model, nn.Module):
        raise InputError(
            f"{name} gave a {type(model).__name__}; expected a callable without arguments that returns a module"
        )
    return model


def imported(spec: str) -> Any:
    """What `module:name` names, looked for in the working directory too.

    Raises:
        InputError: there is no such thing.
    """
    module, _, name = spec.partition(":")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"no model {spec!r}: {error}; expected module:name") from error


def timm_model(spec: str, num_classes: int | None, in_channels: int) -> TimmModel | None:
    """What a file may call the model, if it is one of timm's."""
    bare = spec.removeprefix("timm:")
    if is_factory(spec) or spec.startswith("torchvision:") or not timm.is_model(bare):
        return None
    arguments: dict[str, Any] = {} if in_channels == 3 else {"in_chans": in_channels}
    return TimmModel(bare, arguments | ({} if num_classes is None else {"num_classes": num_classes}))


def _pretrained(source: object, num_classes: int, in_channels: int) -> nn.Module:
    known = timm_model(source, num_classes, in_channels) if isinstance(source, str) else None
    if known is None or source in models():
        also = f"; timm's network of this name is timm:{source}" if known else ""
        raise InputError(f"pretrained weights are timm's: name one of its models, or give a file of weights{also}")
    return pretrained_model(known.name, **known.arguments)


def _usual_classes(spec: str) -> int:
    return 10 if spec in models() else 1000
