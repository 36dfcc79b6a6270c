"""Documents of plain values in a form that JSON has."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def finite(document: Any) -> Any:
    """Replace numbers that are not finite, which JSON has no form for, by None in a document of plain values.

    >>> finite({"loss": float("nan"), "accuracy": 10.0})
    {'loss': None, 'accuracy': 10.0}
    """
    if isinstance(document, float):
        return document if math.isfinite(document) else None
    if isinstance(document, Mapping):
        return {name: finite(value) for name, value in document.items()}
    if isinstance(document, (list, tuple)):
        return [finite(value) for value in document]
    return document
