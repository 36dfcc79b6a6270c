"""Tells which names of models exist from the sources of the libraries, because importing them takes seconds."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from hfp.errors import unknown

OWN = ("resnet8", "resnet20", "resnet32", "resnet56", "vgg16", "vgg-small")
"""The names of hfp's own networks."""
_FOLDERS = {"timm": "models", "torchvision": "models"}
_MAKER = re.compile(r"^@register_model.*\n(?:@.*\n|    .*\n|\).*\n)*def (\w+)\(", re.MULTILINE)


def check_model_name(name: str) -> None:
    """Refuse a name that no library can know, without importing any.

    A name passes where it is one of hfp's own, has a source before a colon, or occurs anywhere in the model files of
    timm or torchvision. The library checks it again when the model is made.

    Raises:
        InputError: the name occurs nowhere; the message suggests the nearest known names.
    """
    bare = name.partition(".")[0]  # timm: ARCHITECTURE.WEIGHTS
    if bare in OWN or ":" in name:
        return
    word = re.compile(rf"\b{re.escape(bare)}\b")
    if not any(bare in text and word.search(text) for text in _sources()):
        raise unknown("model", name, [*OWN, *(found for text in _sources() for found in _MAKER.findall(text))])


@cache
def _sources() -> tuple[str, ...]:
    return tuple(file.read_text(encoding="utf-8", errors="replace") for file in _files())


def _files() -> Iterator[Path]:
    for library, folder in _FOLDERS.items():
        spec = find_spec(library)  # of a top-level package: nothing is imported
        for place in (spec.submodule_search_locations or ()) if spec is not None else ():
            yield from sorted((Path(place) / folder).rglob("*.py"))
