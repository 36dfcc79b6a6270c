"""Declare settings as the fields of a frozen dataclass."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import field, replace
from typing import Any

from hfp.settings.interval import Interval
from hfp.settings.setting import ONE, PAIRS, SEVERAL, Setting

_KEY = "setting"


def setting(default: Any, help: str, *, kind: type | None = None, within: str = "", **declared: Any) -> Any:
    """Declare a field of a dataclass with its default and everything else that there is to say about it.

    Args:
        default: the value of the setting where none is given. None makes the setting optional.
        help: a whole sentence that can be understood alone.
        kind: the type of a value: `bool`, `int`, `float`, `str` or `object`; by default that of `default`.
        within: where numbers must lie, as an interval.
        **declared: other attributes of `Setting`.

    >>> @dataclasses.dataclass(frozen=True)
    ... class Oven:
    ...     degrees: int = setting(180, "The oven has this temperature.", within="[50, 250]", unit="celsius")
    ...
    ...     def __post_init__(self) -> None:
    ...         check_settings(self)
    >>> Oven(degrees=300)
    Traceback (most recent call last):
    hfp.errors.InputError: degrees must be in [50, 250]; found 300
    """
    made = Setting(
        help,
        kind=kind or type(default),
        optional=default is None,
        within=Interval(within) if within else None,
        **declared,
    )
    return field_of(made, default)


def field_of(made: Setting, default: Any) -> Any:
    """Make a field of a dataclass for a setting that is described already, for instance like another one."""
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata={_KEY: made})
    return field(default=default, metadata={_KEY: made})


def settings_of(kind: Any) -> dict[str, Setting]:
    """Return what a dataclass (or an instance) declares, by name.

    A subclass that gives a field another default keeps the field's declaration. The values of a field that declares
    nothing must be of the kind of its default, and numbers where that is None.
    """
    return dict(_all_declared(kind if isinstance(kind, type) else type(kind)))


def check_settings(instance: Any, label: str = "{}") -> None:
    """Check every field of a frozen dataclass, and put its value in normal form.

    Args:
        instance: the dataclass that is being made; call this first in its ``__post_init__``.
        label: what an error calls a field, with ``{}`` for its name.

    Raises:
        InputError: a value is of another kind, outside its range, or none of the choices.
    """
    for name, one in settings_of(instance).items():
        object.__setattr__(instance, name, one.checked(getattr(instance, name), label.format(name)))


@functools.cache
def _all_declared(kind: type) -> Mapping[str, Setting]:
    return {entry.name: _declared(kind, entry) for entry in dataclasses.fields(kind)}


def _declared(kind: type, entry: dataclasses.Field[Any]) -> Setting:
    factory = entry.default_factory
    default = entry.default if factory is dataclasses.MISSING else factory()
    bases = (base.__dict__.get("__dataclass_fields__", {}) for base in kind.__mro__)
    same = (own[entry.name].metadata for own in bases if entry.name in own)
    found = next((metadata[_KEY] for metadata in same if _KEY in metadata), None)
    return replace(found or _undeclared(default), name=entry.name, default=default)


def _undeclared(default: Any) -> Setting:
    if default is dataclasses.MISSING:
        return Setting("")
    if default is None:
        return Setting("", kind=float, optional=True)
    if isinstance(default, (tuple, list)):
        return Setting("", shape=SEVERAL)
    kind = type(default) if type(default) in (bool, int, float, str) else object
    return Setting("", kind=kind, shape=PAIRS if isinstance(default, Mapping) else ONE)
