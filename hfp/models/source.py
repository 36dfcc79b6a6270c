"""Makes full models from what a person gives: a name, `module:factory`, or a module itself."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from torch import Tensor, nn

from hfp.errors import InputError, described
from hfp.models import create_model, models
from hfp.models.names import is_factory
from hfp.models.pretrained import pretrained_model
from hfp.models.weights import load_weights
from hfp.reconstruct import TimmModel
from hfp.reconstruct.models.copying import copied
from hfp.reconstruct.models.twin import computed

RANDOM = "random weights"
"""The origin of the weights of a model that is named without saying more."""


@dataclass(frozen=True)
class FullModel:
    """A full model.

    Args:
        model: the model itself.
        timm: what a file calls the model, None where the file's reader has to bring it.
        shape: the shape of its usual input, (channels, height, width).
    """

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
        num_classes: the number of logits; by default what the model usually has, which is 10 for hfp's own.
        in_channels: channels of the images.
        image_size: side of the images in pixels; by default the model's usual one.
        pretrained: load timm's weights, which may take a download.
        weights: a file with the full state (`hfp.models.weights.read_weights`).

    Raises:
        InputError: there is no such model, it can't be made so, or the file is not its state.
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
    """Make the model that an experiment trains.

    Args:
        source: a name (`hfp.models.create_model`), `module:factory`, a callable without arguments that returns a
            module, or a module, which is copied and starts with its own weights. Random weights are drawn from torch's
            global generator.
        num_classes: the number of classes of the data. A module that is given must have as many outputs, or more.
        in_channels: the channels of the data.
        pretrained: load timm's weights, which may take a download.
        weights: a file with the full state (`hfp.models.weights.read_weights`).

    Returns:
        The model, and a phrase that says where its weights are from.

    Raises:
        InputError: there is no such model, it can't be made so, or the file is not its state.
    """
    if pretrained:
        if weights is not None:
            raise InputError("give either pretrained or weights, not both: each decides where training starts")
        model, origin = _pretrained(source, num_classes, in_channels), "timm's pretrained weights"
    elif isinstance(source, nn.Module):
        model, origin = copy_of(source).cpu(), "the given module's weights"
    elif not isinstance(source, str) or is_factory(source):
        model, origin = from_factory(source), "the factory's weights"
    else:
        model, origin = create_model(source, num_classes, in_channels), RANDOM
    if weights is not None:
        origin = load_weights(model, weights, new_classifier=True)
    return model, origin


def copy_of(module: nn.Module) -> nn.Module:
    """Return a copy of a module that is given, which may have run.

    Raises:
        InputError: something that the module keeps can't be copied.
    """
    try:
        return copied(module, computed(module))
    except Exception as error:  # what a module keeps may refuse in any way
        raise InputError(
            f"the given {type(module).__name__} can't be copied ({described(error)}); give a function that makes "
            "it, or delete the attribute that can't be copied"
        ) from error


def is_model(spec: str) -> bool:
    """Whether a text is the name of a model, or `module:factory`."""
    if is_factory(spec) or spec in models() or timm.is_model(spec.removeprefix("timm:")):
        return True
    return spec.removeprefix("torchvision:") in torchvision.models.list_models()


def from_factory(source: str | Callable[[], nn.Module]) -> nn.Module:
    """Return the module that a callable without arguments makes, or one named as `module:factory`.

    The module of the factory is looked for in the working directory too.

    Raises:
        InputError: the factory can't be imported, or returns no module.
    """
    found: Any = imported(source) if isinstance(source, str) else source
    name = source if isinstance(source, str) else getattr(source, "__qualname__", repr(source))
    try:
        model = found if isinstance(found, nn.Module) or not callable(found) else found()
    except InputError:
        raise
    except Exception as error:  # it is the caller's code
        raise InputError(f"model {name} can't be called without arguments: {_raised(error)}") from error
    if not isinstance(model, nn.Module):
        raise InputError(
            f"{name} gave a {type(model).__name__}; expected a callable without arguments that returns a module"
        )
    return model


def images_of(shape: Sequence[int]) -> Tensor:
    """Return two images of noise, the same each time, of a shape (channels, height, width).

    Raises:
        InputError: they do not fit into memory.
    """
    try:
        return torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    except RuntimeError as error:
        raise InputError(f"two images of {' x '.join(map(str, shape))} do not fit into memory") from error


def imported(spec: str, what: str = "model") -> Any:
    """Import `what` a text `module:name` names; the module is looked for in the working directory too.

    Raises:
        InputError: there is no such thing.
    """
    module, _, name = spec.partition(":")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(
            f"no {what} {spec!r}: {error}; expected module:{'factory' if what == 'model' else what}"
        ) from error
    except Exception as error:  # the module is the caller's code
        raise InputError(f"no {what} {spec!r}: module {module} can't be imported: {_raised(error)}") from error


def _raised(error: Exception) -> str:
    """Say what was raised, and by which line of which file."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    if isinstance(error, SyntaxError) or last.filename == __file__:  # the first says its line itself
        return f"{type(error).__name__}: {error}"
    return f"{type(error).__name__}: {error} ({Path(last.filename).name}, line {last.lineno})"


def timm_model(spec: str, num_classes: int | None, in_channels: int) -> TimmModel | None:
    """Return what a file calls the model if it is one of timm's, else None."""
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
