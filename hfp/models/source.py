"""Full models by what a person types: a name of ours, timm's or torchvision's, or `module:factory`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from hfp.errors import InputError
from hfp.models import create_model
from hfp.reconstruct import TimmModel

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
        weights: a safetensors file with the full state.

    Raises:
        InputError: no such model, or one that can't be made so; a file that is not its state.
    """
    factory = ":" in spec and spec.partition(":")[0] not in _SOURCES
    bare = spec.removeprefix("timm:")
    if factory:
        model, known = _from_factory(spec), None
    elif timm.is_model(bare) and not spec.startswith("torchvision:"):
        arguments: dict[str, Any] = {} if in_channels == 3 else {"in_chans": in_channels}
        arguments |= {} if num_classes is None else {"num_classes": num_classes}
        known = TimmModel(bare, arguments)
        model = timm.create_model(bare, pretrained=pretrained, **arguments)
    else:
        model, known = create_model(spec, num_classes or _usual_classes(spec), in_channels), None
    if pretrained and known is None:
        raise InputError("--pretrained loads timm's weights; give --weights FILE for another model")
    if weights is not None:
        _load(model, weights)
    usual = getattr(model, "pretrained_cfg", {}).get("input_size", (3, 32 if spec in _own() else 224))[-1]
    size = image_size or usual
    return FullModel(model, known, (in_channels, size, size))


def _own() -> tuple[str, ...]:
    from hfp.models import models

    return models()


def _usual_classes(spec: str) -> int:
    return 10 if spec in _own() else 1000


def _from_factory(spec: str) -> nn.Module:
    module, _, name = spec.partition(":")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise InputError(f"no model {spec!r}: {error}; expected module:factory") from error
    model = found() if callable(found) else found
    if not isinstance(model, nn.Module):
        raise InputError(
            f"{spec} gave a {type(model).__name__}; expected a callable without arguments that returns a module"
        )
    return model


def _load(model: nn.Module, path: Path) -> None:
    try:
        state: Mapping[str, Any] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"no weights in {path}: {error}") from error
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise InputError(f"{path} is not the state of this model: {error}") from error
