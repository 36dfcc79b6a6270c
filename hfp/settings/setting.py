"""Describe what is declared about one setting, and check a value or a text against it."""

from __future__ import annotations

import json
import numbers
import os
import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from hfp.errors import InputError, unknown
from hfp.settings.interval import Interval
from hfp.settings.table import Table

ONE, EITHER, SEVERAL, PAIRS = "one", "one or several", "several", "pairs"
"""A setting takes one value; one or a list; a list; or a table of names and values."""

_KINDS: Mapping[type, tuple[tuple[type, ...], str, str]] = MappingProxyType(
    {
        bool: ((bool,), "true or false", "true or false"),
        int: ((numbers.Integral,), "a whole number", "whole numbers"),
        float: ((numbers.Real,), "a number", "numbers"),
        str: ((str, os.PathLike), "a name", "names"),
        object: ((object,), "a value", "values"),
    }
)
_FINITE = Interval("(-inf, inf)")


@dataclass(frozen=True)
class Setting:
    """What is declared about one field of a dataclass.

    Attributes:
        help: a whole sentence that can be understood alone.
        kind: the type of a value: `bool`, `int`, `float`, `str`, or `object` for any value.
        shape: how many values it takes: `ONE`, `EITHER`, `SEVERAL` or `PAIRS`.
        optional: whether None is a value.
        within: where numbers must lie.
        reason: why they must lie there, for the error.
        choices: the values that exist (the names, for `PAIRS`) with a phrase about each, or a function that lists them.
        noun: what an error calls one of the choices.
        unit: what a number counts.
        group: the heading under which it is shown.
        aliases: other names of its flag on the command line.
        check: a further check of one value, which raises InputError.
        also: whether a value is taken as it is when it is of another kind or is none of the choices.
        name: the field's name.
        default: the field's default.
    """

    help: str
    kind: type = object
    shape: str = ONE
    optional: bool = False
    within: Interval | None = None
    reason: str = ""
    choices: Mapping[Any, str] | Callable[[], Iterable[Any]] | None = None
    noun: str = ""
    unit: str = ""
    group: str = ""
    aliases: tuple[str, ...] = ()
    check: Callable[[Any], object] | None = None
    also: Callable[[Any], bool] | None = None
    name: str = ""
    default: Any = None

    def checked(self, value: Any, label: str = "") -> Any:
        """Return the value in its normal form: a list becomes a tuple, and a table becomes read-only.

        Args:
            value: any value, for instance one that a file holds.
            label: what an error calls the setting, by default its name.

        Raises:
            InputError: the value is of another kind, outside its range, or none of the choices.
        """
        label = label or self.name
        if value is None and self.optional:
            return None
        if self.also is not None and self.also(value):
            return value
        if self.shape == PAIRS and isinstance(value, Mapping):
            return Table({name: self._pair(name, part, label) for name, part in value.items()})
        if self.shape in (EITHER, SEVERAL) and isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
            if len(value) or self.shape == SEVERAL:
                return tuple(self._one(part, label) for part in value)
        elif self.shape in (ONE, EITHER):
            return self._one(value, label)
        raise _refused(label, self.expected, value)

    def read(self, text: str) -> Any:
        """Return the value that a text stands for.

        A text that stands for none is returned itself, and `checked` then refuses it.

        >>> Setting("Sizes.", kind=float, shape=EITHER).read("0.25,0.5")
        (0.25, 0.5)

        Raises:
            InputError: one of several pairs has no equals sign, or two have one name.
        """
        if self.shape == PAIRS:
            try:
                pairs = [pair(part) for part in text.split()]
            except InputError as error:
                raise _refused(self.name, "NAME=VALUE pairs with spaces between them", text) from error
            return self.gathered(pairs)
        number = self.kind if self.kind in (int, float) else str
        try:
            parts = tuple(number(part) for part in ([text] if self.shape == ONE else text.split(",")))
        except ValueError:
            return text
        return parts if self.shape == SEVERAL or len(parts) > 1 else parts[0]

    def gathered(self, pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
        """Return the table of pairs that a person gave.

        Raises:
            InputError: two of them have one name, so that one would be ignored.
        """
        found: dict[str, Any] = {}
        for name, value in pairs:
            if name in found:
                label = self.noun or self.name.removesuffix("s")
                raise InputError(
                    f"{label} {name} is given twice: {shown(found[name])} and {shown(value)}; give it once"
                )
            found[name] = value
        return found

    @property
    def expected(self) -> str:
        """Return what kind of value it takes, as the end of "must be …"."""
        _, one, many = _KINDS[self.kind]
        return {
            ONE: one,
            EITHER: f"{one} or a list of {many}",
            SEVERAL: f"a list of {many}",
            PAIRS: f"a table of names and {many}",
        }[self.shape]

    @property
    def known(self) -> tuple[Any, ...]:
        """Return the choices that exist."""
        return tuple(self.choices()) if callable(self.choices) else tuple(self.choices or ())

    def _pair(self, name: Any, value: Any, label: str) -> Any:
        if not isinstance(name, str):
            raise _refused(label, self.expected, {name: value})
        if self.choices is not None and name not in self.known:
            raise unknown(self.noun or label, name, self.known)
        return replace(self, shape=ONE, choices=None)._one(value, f"{self.noun or label} {name}")

    def _one(self, value: Any, label: str) -> Any:
        types, _, _ = _KINDS[self.kind]
        expected = isinstance(value, types) and (not isinstance(value, bool) or self.kind in (bool, object))
        if not expected:
            raise _refused(label, self.expected, value)
        if self.kind in (int, float):
            value = self._number(value, label)
        elif self.kind is str:
            value = os.fspath(value)
        if self.choices is not None and value not in self.known:
            if self.kind is str:
                raise unknown(self.noun or label, value, self.known)
            raise _refused(label, f"one of {', '.join(map(str, self.known))}", value)
        if self.check is not None:
            self.check(value)
        return value

    def _number(self, value: Any, label: str) -> Any:
        try:
            place = float(value) if self.kind is float else int(value)
        except OverflowError:  # the whole number is beyond all floats
            place = float("inf")
        if place not in (self.within or _FINITE):
            expected = self.within.words(self.kind) if self.within else "a finite number"
            raise _refused(label, f"{expected}: {self.reason}" if self.reason else expected, value)
        return value if type(value) in (int, float) else place


def pair(text: str) -> tuple[str, Any]:
    """Split ``NAME=VALUE`` into a name and a value, which is read as JSON where it can be, else as text.

    >>> pair("server-momentum=0.5"), pair("rule=holders")
    (('server_momentum', 0.5), ('rule', 'holders'))

    Raises:
        InputError: there is no equals sign.
    """
    name, separator, value = text.partition("=")
    if not separator:
        raise InputError(f"expected NAME=VALUE; found {shown(text)}")
    try:
        return name.replace("-", "_"), json.loads(value)
    except (ValueError, RecursionError):  # Python reads no number of thousands of digits, and says so by ValueError
        return name.replace("-", "_"), value


def shown(value: Any) -> str:
    """Return a value as an error shows it: in one line, and of a bounded length and depth."""
    return _Shown().repr(value)


class _Shown(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = self.maxlong = 100
        self.maxlevel = 3

    def repr_int(self, value: int, level: int) -> str:
        try:
            return super().repr_int(value, level)
        except ValueError:  # Python writes no number of thousands of digits
            return f"a whole number of {value.bit_length():,} bits"


def _refused(label: str, expected: str, found: Any) -> InputError:
    return InputError(f"{label} must be {expected}; found {shown(found)}")
