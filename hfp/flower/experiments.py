"""A run's experiment from its configuration, as Flower gives it: flat, with plain values, text for what has several."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from hfp.errors import InputError, unknown
from hfp.federation.experiment import Experiment
from hfp.flower.settings import Settings, dashed, fields_of

PAIRS = ("options", "budget")
LISTS = {"ratio": float, "profile": str}


def experiment_from(config: Mapping[str, Any]) -> Experiment:
    """The experiment in a run's configuration. Empty texts count as not given; what isn't there keeps its default.

    ``ratio`` and ``profile`` may list several, ``"0.25,0.5"``; ``options`` and ``budget`` are pairs, ``"warmup=1"``.

    Raises:
        InputError: a name isn't known, or a value can't be used.
    """
    known = {entry.name for entry in dataclasses.fields(Experiment)}
    others = {entry.name for entry in dataclasses.fields(Settings)}
    values = {}
    for name, value in fields_of(config).items():
        if name in others or value == "":
            continue
        if name not in known:
            raise unknown("setting", dashed(name), [dashed(other) for other in known | others])
        values[name] = _read(name, value)
    return Experiment(**values)


def _read(name: str, value: Any) -> Any:
    if name in PAIRS:
        return dict(_pair(name, part) for part in str(value).split())
    if name in LISTS and isinstance(value, str):
        try:
            parts = tuple(LISTS[name](part) for part in value.split(","))
        except ValueError as error:
            raise InputError(f"{name} must be numbers with commas between them; found {value!r}") from error
        return parts[0] if len(parts) == 1 else parts
    return value


def _pair(name: str, text: str) -> tuple[str, Any]:
    key, separator, value = text.partition("=")
    if not separator:
        raise InputError(f"{name} must be NAME=VALUE pairs with spaces between them; found {text!r}")
    try:
        return key.replace("-", "_"), json.loads(value)
    except json.JSONDecodeError:
        return key.replace("-", "_"), value
