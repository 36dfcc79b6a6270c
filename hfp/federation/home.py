"""Moves the server's state to the device that clients train on, so that it isn't copied back and forth."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

from hfp.reconstruct import IndexMap, TensorMap

Value = TypeVar("Value")


def moved(value: Value, device: torch.device) -> Value:
    """Return the value with all its tensors on `device`, in mappings, tuples, lists and dataclasses, however nested.

    A value without a tensor on another device is returned as it is.

    >>> moved({"weight": torch.zeros(2)}, torch.device("meta"))["weight"].device
    device(type='meta')
    """
    changed: Any = _moved(value, device)
    return value if changed is None else changed


def _moved(value: Any, device: torch.device) -> Any:
    """Return the moved value, or None where nothing had to move."""
    if isinstance(value, Tensor):
        return value.to(device) if value.device != device else None
    if isinstance(value, Mapping):
        parts = {key: _moved(part, device) for key, part in value.items()}
        return None if all(part is None for part in parts.values()) else {k: _or(parts[k], value[k]) for k in value}
    if isinstance(value, (tuple, list)):
        items = [_moved(part, device) for part in value]
        if all(item is None for item in items):
            return None
        return type(value)(_or(item, part) for item, part in zip(items, value, strict=True))
    if isinstance(value, IndexMap | TensorMap):  # indices stay, each has copies of its own elsewhere
        return None
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        entries = {entry.name: getattr(value, entry.name) for entry in dataclasses.fields(value) if entry.init}
        found = {name: _moved(part, device) for name, part in entries.items()}
        changed = {name: part for name, part in found.items() if part is not None}
        return dataclasses.replace(value, **changed) if changed else None
    return None


def _or(moved: Any, value: Any) -> Any:
    return value if moved is None else moved
