"""Write and strictly read the JSON document inside a file of a pruned model, in format version 1."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hfp.reconstruct.errors import MapError
from hfp.reconstruct.models.attributes import Attributes, is_plain

FORMAT_VERSION = 1
_DEEPEST = 50


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of the full model: its shape, and per dimension the number of an index vector or None for all."""

    shape: tuple[int, ...]
    kept: tuple[int | None, ...]


@dataclass(frozen=True)
class Document:
    """Everything in a file but numbers.

    Args:
        tensors: an entry for every key of the full state_dict, in its order.
        transient: an entry for every cut buffer outside the state_dict.
        tied: the other name under which the same tensor is stored, by name.
        attributes: the plain attributes that pruning changed, with their values in the compact model, by module name.
        skeleton: the timm name and arguments of the full model, or None if the reader has to bring it.
        metadata: the caller's own (criterion, budget, ...), which is any JSON object.
        libraries: the version of each library that wrote the file.
    """

    tensors: Mapping[str, TensorEntry]
    transient: Mapping[str, TensorEntry]
    tied: Mapping[str, str]
    attributes: Mapping[str, Mapping[str, Any]]
    skeleton: tuple[str, Mapping[str, Any]] | None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    libraries: Mapping[str, str] = field(default_factory=dict)

    def dump(self) -> str:
        """Return the document as JSON.

        Raises:
            MapError: JSON cannot hold the metadata, an attribute or an argument.
        """
        document = {
            "format": FORMAT_VERSION,
            "skeleton": None if self.skeleton is None else {"timm": self.skeleton[0], "arguments": self.skeleton[1]},
            "tensors": {name: _entry(entry) for name, entry in self.tensors.items()},
            "transient": {name: _entry(entry) for name, entry in self.transient.items()},
            "tied": dict(self.tied),
            "attributes": {
                name: {key: _packed(value) for key, value in changed.items()}
                for name, changed in self.attributes.items()
            },
            "metadata": self.metadata,
            "libraries": dict(self.libraries),
        }
        try:
            return json.dumps(document, allow_nan=False, separators=(",", ":"))
        except (TypeError, ValueError, RecursionError) as error:
            raise MapError(f"metadata, attributes and arguments must be plain JSON values: {error}") from error

    @classmethod
    def parse(cls, text: str) -> Document:
        """Read what `dump` wrote, and nothing else.

        Raises:
            MapError: the text is not such a document, or is one of another format version.
        """
        try:
            found = json.loads(text, parse_constant=_reject, object_pairs_hook=_unrepeated)
        except (ValueError, RecursionError) as error:
            raise MapError(f"the description of the pruned model is damaged: {error}") from error
        _check_depth(found)
        version = found.get("format") if isinstance(found, dict) else None
        if type(version) is not int or version != FORMAT_VERSION:
            raise MapError(
                f"expected format version {FORMAT_VERSION}, found {version!r}; use a matching version of hfp"
            )
        parts = _fields(
            found,
            "the description",
            {"format", "skeleton", "tensors", "transient", "tied", "attributes", "metadata", "libraries"},
        )
        return cls(
            tensors={name: _parsed_entry(name, value) for name, value in _object(parts, "tensors").items()},
            transient={name: _parsed_entry(name, value) for name, value in _object(parts, "transient").items()},
            tied=_strings(parts, "tied"),
            attributes=_parsed_attributes(_object(parts, "attributes")),
            skeleton=_parsed_skeleton(parts["skeleton"]),
            metadata=_object(parts, "metadata"),
            libraries=_strings(parts, "libraries"),
        )


def _check_depth(found: Any) -> None:
    """Refuse a document that is nested more deeply than functions that call themselves can follow."""
    level = [found]
    for _ in range(_DEEPEST):
        level = [
            inner
            for value in level
            if isinstance(value, dict | list)
            for inner in (value.values() if isinstance(value, dict) else value)
        ]
        if not level:
            return
    raise MapError(f"the description of the pruned model is damaged: it is nested more than {_DEEPEST} deep")


def _entry(entry: TensorEntry) -> dict[str, list[Any]]:
    return {"shape": list(entry.shape), "kept": list(entry.kept)}


def _packed(value: Any) -> Any:
    """Turn tuples into {"tuple": [...]}, because JSON knows only lists."""
    if isinstance(value, tuple):
        return {"tuple": [_packed(item) for item in value]}
    return [_packed(item) for item in value] if isinstance(value, list) else value


def _unpacked(value: Any, where: str) -> Any:
    if isinstance(value, dict):
        items = _fields(value, where, {"tuple"})["tuple"]
        if not isinstance(items, list):
            raise MapError(f"{where}: expected a list of values, found {items!r}")
        return tuple(_unpacked(item, where) for item in items)
    return [_unpacked(item, where) for item in value] if isinstance(value, list) else value


def _parsed_entry(name: str, value: Any) -> TensorEntry:
    parts = _fields(value, name, {"shape", "kept"})
    shape, kept = parts["shape"], parts["kept"]
    if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
        raise MapError(f"{name}: expected a shape of non-negative integers, found {shape!r}")
    valid = isinstance(kept, list) and all(number is None or type(number) is int for number in kept)
    if not valid or len(kept) != len(shape):
        raise MapError(f"{name}: expected one number of an index vector (or null) per dimension, found {kept!r}")
    return TensorEntry(tuple(shape), tuple(kept))


def _parsed_attributes(found: Mapping[str, Any]) -> Attributes:
    attributes: Attributes = {}
    for name, changed in found.items():
        if not isinstance(changed, dict):
            raise MapError(f"attributes of {name}: expected an object, found {changed!r}")
        attributes[name] = {key: _unpacked(value, f"{name}.{key}") for key, value in changed.items()}
        for key, value in attributes[name].items():
            if not is_plain(value):
                raise MapError(f"{name}.{key}: expected a plain value, found {value!r}")
    return attributes


def _parsed_skeleton(found: Any) -> tuple[str, Mapping[str, Any]] | None:
    if found is None:
        return None
    parts = _fields(found, "skeleton", {"timm", "arguments"})
    if not isinstance(parts["timm"], str):
        raise MapError(f"skeleton: expected the name of a timm model, found {parts['timm']!r}")
    return parts["timm"], {
        key: _unpacked(value, f"argument {key}") for key, value in _object(parts, "arguments").items()
    }


def _fields(found: Any, where: str, names: set[str]) -> dict[str, Any]:
    if not isinstance(found, dict) or found.keys() != names:
        keys = sorted(found) if isinstance(found, dict) else found
        raise MapError(f"{where}: expected an object with {', '.join(sorted(names))}; found {keys!r}")
    return found


def _object(parts: Mapping[str, Any], key: str) -> dict[str, Any]:
    if not isinstance(parts[key], dict):
        raise MapError(f"{key}: expected an object, found {type(parts[key]).__name__}")
    return parts[key]


def _strings(parts: Mapping[str, Any], key: str) -> dict[str, str]:
    found = _object(parts, key)
    if not all(isinstance(value, str) for value in found.values()):
        raise MapError(f"{key}: expected strings only")
    return found


def _reject(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON number")


def _unrepeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is repeated")
    return found
