"""Methods by name."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

from hfp.errors import InputError, unknown
from hfp.methods.interface.base import Method

_METHODS: dict[str, type[Method]] = {}


def register(method: type[Method]) -> type[Method]:
    """Class decorator: make a method known by its `name`."""
    _METHODS[method.name] = method
    return method


def methods() -> tuple[type[Method], ...]:
    """Every known method, in order of name."""
    return tuple(_METHODS[name] for name in sorted(_METHODS))


def create_method(name: str, **options: Any) -> Method:
    """Make a method by name.

    Raises:
        InputError: the name or an option isn't known, or an option's value is out of its range.
    """
    if name not in _METHODS:
        raise unknown("method", name, _METHODS)
    kind = _METHODS[name]
    options = _with_todays_names(kind, options)
    defaults = {entry.name: entry.default for entry in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for option, value in options.items():
        if not defaults:
            raise InputError(f"{name} has no options; found {option!r}")
        if option not in defaults:
            raise unknown(f"option of {name}", option, defaults)
        _check_type(name, option, value, defaults[option])
    return kind(**options)


def _with_todays_names(kind: type[Method], options: dict[str, Any]) -> dict[str, Any]:
    for old in options.keys() & kind.renamed_options.keys():
        new = kind.renamed_options[old]
        warnings.warn(f"option {old} of {kind.name} is called {new} now", FutureWarning, stacklevel=4)
    return {kind.renamed_options.get(option, option): value for option, value in options.items()}


def _check_type(method: str, option: str, value: Any, default: Any) -> None:
    """Hold a value to its default's type; without a default (None) it is a number, and None is as good."""
    expected = float if default is None else type(default)
    accepted = {float: (int, float), tuple: (tuple, list)}.get(expected, (expected,))
    if value is None and default is None:
        return
    if not isinstance(value, accepted) or (isinstance(value, bool) and expected is not bool):
        raise InputError(f"option {option} of {method} must be of type {expected.__name__}; found {value!r}")
