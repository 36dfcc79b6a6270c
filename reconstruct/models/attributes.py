"""Record and set plain attributes of modules.

Surgery changes some of them, and a compact model needs these to be rebuilt.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from numbers import Integral, Real
from types import ModuleType
from typing import Any

import numpy as np
from torch import Tensor, nn

from hfp.reconstruct.errors import MapError

Attributes = dict[str, dict[str, Any]]


def settings_of(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield (name, object) of every plain object that a module keeps, such as a configuration."""
    for name, value in vars(module).items():
        other = isinstance(value, nn.Module | Tensor | ModuleType) or callable(value)
        if _public(name) and not other and hasattr(value, "__dict__"):
            yield name, value


def value_of(module: nn.Module, key: str) -> Any:
    """Return an attribute of a module; "config.heads" is one of an object that the module keeps.

    Raises:
        KeyError: there is none.
    """
    place, _, name = key.rpartition(".")
    return vars(dict(settings_of(module))[place] if place else module)[name]


def _set(module: nn.Module, key: str, value: Any) -> None:
    """Set an attribute; other modules that keep the same object keep it as it is."""
    place, _, name = key.rpartition(".")
    if place:
        own = copy.copy(getattr(module, place))
        setattr(own, name, value)
        name, value = place, own
    setattr(module, name, value)


def is_plain(value: object) -> bool:
    """Return whether `value` is an int, float, bool, str or None, or a list or tuple of plain values."""
    if type(value) in (list, tuple):
        return all(is_plain(item) for item in value)  # type: ignore[attr-defined]
    return value is None or type(value) in (int, float, bool, str)


def plain(value: object) -> Any:
    """Return a copy of `value` with subclasses (torch.Size, NumPy numbers) turned into the plain types.

    Other values are returned as they are.
    """
    if isinstance(value, np.bool_):
        return bool(value)
    if isinstance(value, bool | str) or value is None:
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value)
    if isinstance(value, list | tuple):
        return (list if isinstance(value, list) else tuple)(map(plain, value))
    return value


def same_kind(old: object, new: object) -> bool:
    """Return whether an attribute that holds `old` may be given `new`.

    Numbers may replace numbers, lists lists, and tuples tuples. None and a number or sequence may replace each other.
    Only a string may replace a string.
    """
    if old is None or new is None:
        return not isinstance(old, str) and not isinstance(new, str)
    if type(old) in (int, float) and type(new) in (int, float):
        return True
    return type(old) is type(new)


def snapshot(model: nn.Module) -> Attributes:
    """Return the value of every plain public attribute but `training`, by module name and attribute."""
    return {
        name: {
            key: value
            for key, value in ((key, plain(value)) for key, value in vars(module).items() if _public(key))
            if is_plain(value)
        }
        for name, module in model.named_modules()
    }


def changes(before: Attributes, model: nn.Module) -> Attributes:
    """Return what differs from an earlier `snapshot`, with the present values.

    Raises:
        MapError: an attribute is gone, or became something that a compact model cannot be given.
    """
    found: Attributes = {}
    for name, module in model.named_modules():
        now = vars(module)
        for key, old in before.get(name, {}).items():
            new = plain(now[key]) if key in now else ...
            if type(new) is type(old) and [new] == [old]:  # in a list, NaN is the same as itself
                continue
            if not is_plain(new) or not same_kind(old, new):
                raise MapError(
                    f"{name or 'model'}.{key} changed from {old!r} to {'nothing' if new is ... else repr(new)}; "
                    "an index map holds numbers, strings and lists of the type that was there"
                )
            found.setdefault(name, {})[key] = new
    return found


def check(model: nn.Module, attributes: Mapping[str, Mapping[str, Any]]) -> dict[str, nn.Module]:
    """Check that the attributes can be set, and return the model's modules by name.

    Raises:
        MapError: a module or attribute does not exist, or holds another type of value.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    for name, changed in attributes.items():
        if name not in modules:
            raise MapError(f"the model has no module {name!r}, whose attributes {sorted(changed)} must change")
        for key, value in changed.items():
            _check(modules[name], name or "model", key, value)
    return modules


def apply(model: nn.Module, attributes: Mapping[str, Mapping[str, Any]]) -> None:
    """Set the attributes, after checking all of them.

    Raises:
        MapError: `check` refuses one. Nothing was set then.
    """
    modules = check(model, attributes)
    for name, changed in attributes.items():
        for key, value in changed.items():
            _set(modules[name], key, copy.deepcopy(value))


def _check(module: nn.Module, where: str, key: str, value: object) -> None:
    try:
        old = plain(value_of(module, key))
    except KeyError:
        old = object()
    if not all(map(_public, key.split("."))) or not is_plain(old):
        raise MapError(f"{where} ({type(module).__name__}) has no plain attribute {key!r} to set to {value!r}")
    if not is_plain(value) or not same_kind(old, value):
        raise MapError(f"{where}.{key}: expected a value like {old!r}, got {value!r}")


def _public(key: str) -> bool:
    return not key.startswith("_") and key != "training"
