"""Tells a bundled method's options from the text of its file, because loading the file would load torch."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from hfp.errors import InputError, unknown

_FOLDER = Path(__file__).parents[1]
_OPTION = re.compile(r"^    (\w+): (?!ClassVar).+ = ", re.MULTILINE)
_PARENT = re.compile(r"^from hfp\.methods\.(\w+) import", re.MULTILINE)


def check_option_names(method: str, options: Iterable[str]) -> None:
    """Refuse names of options that a bundled method can't have, without loading it.

    A name passes where it occurs anywhere in the method's file or in those of the methods that it extends. The method
    itself checks again when it is made.

    Raises:
        InputError: a name occurs nowhere; the message suggests the nearest known names.
    """
    texts = _texts(method.replace("-", "_"))
    for option in options if texts else ():
        if any(re.search(rf"\b{re.escape(option)}\b", text) for text in texts):
            continue
        known = {name for text in texts for name in _OPTION.findall(_head(text))}
        if not known:
            raise InputError(f"{method} has no options; found {option!r}")
        raise unknown(f"option of {method}", option, known)


def _head(text: str) -> str:
    """Return a method's class up to its first function, where its options are."""
    return text.partition("@register")[2].partition("    def ")[0]


def _texts(stem: str) -> list[str]:
    file = _FOLDER / f"{stem}.py"
    if not file.is_file():
        return []
    text = file.read_text(encoding="utf-8")
    return [text, *(more for parent in _PARENT.findall(text) for more in _texts(parent))]
