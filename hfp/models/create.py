"""Makes networks by name: hfp's own, else timm's, else torchvision's."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import timm
import torchvision
from torch import nn

from hfp.errors import InputError, message_of, unknown
from hfp.models.names import SOURCES
from hfp.models.resnet import ResNet
from hfp.models.vgg import SMALL_STAGES, VGG, VGG16_STAGES

_OWN: dict[str, Callable[..., nn.Module]] = {
    "resnet8": partial(ResNet, 1),
    "resnet20": partial(ResNet, 3),
    "resnet32": partial(ResNet, 5),
    "resnet56": partial(ResNet, 9),
    "vgg16": partial(VGG, VGG16_STAGES, (512,)),
    "vgg-small": partial(VGG, SMALL_STAGES),
}
_NO_AUXILIARY_HEADS = {"aux_logits": False, "init_weights": True}
_TORCHVISION_DEFAULTS = {"googlenet": _NO_AUXILIARY_HEADS, "inception_v3": _NO_AUXILIARY_HEADS}


def models() -> tuple[str, ...]:
    """Return the names of hfp's own networks."""
    return tuple(_OWN)


def create_model(name: str, num_classes: int = 10, in_channels: int = 3, **options: Any) -> nn.Module:
    """Make a network with random weights, for images `[batch, in_channels, height, width]`.

    The weights are drawn from torch's global generator.

    Args:
        name: one of hfp's own (`resnet8`, `resnet20`, `resnet32`, `resnet56`, `vgg16`, `vgg-small`), else a name of
            timm, else a classifier of torchvision. `timm:NAME` and `torchvision:NAME` ask for one library.
        num_classes: the number of logits.
        in_channels: the channels of the images; torchvision's networks take 3.
        **options: go to the network's constructor; hfp's own networks take `width`, a factor on all channels.

    Returns:
        The network, in training mode.

    Raises:
        InputError: the name or an option is unknown, or the network can't have as many classes or channels.

    >>> import hfp, torch
    >>> model = hfp.create_model("resnet8", num_classes=5, in_channels=1, width=0.5)
    >>> model(torch.rand(2, 1, 28, 28)).shape
    torch.Size([2, 5])
    """
    if num_classes < 1 or in_channels < 1:
        raise InputError(
            f"num_classes and in_channels must be 1 or more, found num_classes={num_classes}, in_channels={in_channels}"
        )
    source, bare = _resolve(name)
    makers = {"hfp": _create_own, "timm": _create_timm, "torchvision": _create_torchvision}
    try:
        return makers[source](bare, num_classes, in_channels, options)
    except InputError:
        raise
    except Exception as error:  # what a library raises where options don't fit is its own
        raise InputError(
            f"{source} can't make {bare} with num_classes={num_classes}, in_channels={in_channels}, {options}: "
            f"{message_of(error)}"
        ) from error


def _resolve(name: str) -> tuple[str, str]:
    forced, colon, bare = name.partition(":")
    if colon and forced not in SOURCES:
        raise unknown("source of models", forced, SOURCES)
    if not colon and name in _OWN:
        return "hfp", name
    wanted = bare if colon else name
    for source, has in (("timm", timm.is_model), ("torchvision", _torchvision_names().__contains__)):
        if forced in (source, name) and has(wanted):
            return source, wanted
    known = {"timm": timm.list_models(), "torchvision": _torchvision_names()}
    if colon:
        raise unknown(f"{forced} model", bare, known[forced])
    raise unknown("model", name, [*_OWN, *known["timm"], *known["torchvision"]])


def _torchvision_names() -> list[str]:
    return torchvision.models.list_models(module=torchvision.models)


def _create_own(name: str, num_classes: int, in_channels: int, options: dict[str, Any]) -> nn.Module:
    make = _OWN[name]
    known = [p.name for p in inspect.signature(make).parameters.values() if p.kind is p.KEYWORD_ONLY]
    for option in options:
        if option not in known:
            raise unknown(f"option of {name}", option, known)
    return make(num_classes=num_classes, in_channels=in_channels, **options)


def _create_timm(name: str, num_classes: int, in_channels: int, options: dict[str, Any]) -> nn.Module:
    return timm.create_model(name, pretrained=False, num_classes=num_classes, in_chans=in_channels, **options)


def _create_torchvision(name: str, num_classes: int, in_channels: int, options: dict[str, Any]) -> nn.Module:
    if in_channels != 3:
        raise InputError(
            f"torchvision's {name} takes images of 3 channels, found {in_channels}; "
            f"take one of {', '.join(_OWN)} or a timm model"
        )
    settings = {**_TORCHVISION_DEFAULTS.get(name, {}), **options}
    return torchvision.models.get_model(name, weights=None, num_classes=num_classes, **settings)
