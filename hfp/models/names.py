"""Tells which names of models exist from the sources of the libraries, because importing them takes seconds."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from functools import cache
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path

from hfp.errors import InputError, unknown

OWN = ("resnet8", "resnet20", "resnet32", "resnet56", "vgg16", "vgg-small")
"""The names of hfp's own networks."""
SOURCES = ("timm", "torchvision")
"""Where other models come from, which the name of a model may begin with."""
_MAKER = re.compile(r"^@register_model.*\n(?:@.*\n|    .*\n|\).*\n)*def (\w+)\(", re.MULTILINE)


def is_factory(spec: str) -> bool:
    """Tell whether a text is `module:factory`, rather than the name of a model."""
    return ":" in spec and spec.partition(":")[0] not in SOURCES


def check_model_name(name: str) -> None:
    """Refuse a name that no library can know, without importing any.

    A name passes where it is one of hfp's own, or occurs anywhere in the model files of timm or torchvision. The
    library checks it again when the model is made. Of ``module:factory`` the module must be there.

    Raises:
        InputError: the name occurs nowhere; the message suggests the nearest known names.
    """
    source, colon, rest = name.partition(":")
    if is_factory(name):
        return _check_module(source, name)
    bare = (rest if colon else name).partition(".")[0]  # timm: ARCHITECTURE.WEIGHTS
    if bare in OWN or ":" in rest:
        return None
    word = re.compile(rf"\b{re.escape(bare)}\b")
    if not any(bare in text and word.search(text) for text in _sources()):
        raise unknown("model", name, [*OWN, *(found for text in _sources() for found in _MAKER.findall(text))])
    return None


def check_full_model(name: str | None) -> None:
    """Refuse a full model that is given beside a file, as ``check_model_name``."""
    if name is not None:
        check_model_name(name)


def _check_module(module: str, name: str) -> None:
    """Refuse a module of which not even the package is there, in the working directory or on Python's path."""
    top = module.partition(".")[0]
    if top in sys.modules or (top and (PathFinder.find_spec(top, [os.getcwd()]) or find_spec(top))):
        return
    raise InputError(f"no model {name!r}: there is no module {top!r}; expected module:factory")


@cache
def _sources() -> tuple[str, ...]:
    return tuple(file.read_text(encoding="utf-8", errors="replace") for file in _files())


def _files() -> Iterator[Path]:
    for library in SOURCES:
        spec = find_spec(library)  # of a top-level package: nothing is imported
        for place in (spec.submodule_search_locations or ()) if spec is not None else ():
            yield from sorted((Path(place) / "models").rglob("*.py"))
