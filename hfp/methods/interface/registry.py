"""Finds methods by name. A bundled method has the name of its file, so that names are known before torch is loaded."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfp.errors import InputError, unknown
from hfp.settings import settings_of

if TYPE_CHECKING:
    from hfp.methods.interface.base import Method

_METHODS: dict[str, type[Method]] = {}
_FILES = {
    file.stem.replace("_", "-"): f"hfp.methods.{file.stem}"
    for file in Path(__file__).parents[1].glob("*.py")
    if not file.stem.startswith("_")
}


def register(method: type[Method]) -> type[Method]:
    """Decorate a class to make the method known by its `name`."""
    _METHODS[method.name] = method
    return method


def method_names() -> tuple[str, ...]:
    """Return the names of all known methods, in alphabetical order."""
    return tuple(sorted({*_FILES, *_METHODS}))


def methods() -> tuple[type[Method], ...]:
    """Return the classes of all known methods, in alphabetical order of their names."""
    return tuple(method_class(name) for name in method_names())


def method_class(name: str) -> type[Method]:
    """Return the class of a method.

    Raises:
        InputError: the name isn't known.
    """
    if name not in _METHODS and name not in _FILES:
        raise unknown("method", name, method_names())
    if name not in _METHODS:
        import_module(_FILES[name])
    return _METHODS[name]


def create_method(name: str, /, **options: Any) -> Method:
    """Make a method by name.

    >>> create_method("fedprox", mu=0.1).mu
    0.1

    Raises:
        InputError: the name or an option isn't known, an option's value is of another kind or out of its range, or the
            method's class lacks a part that every method defines.
    """
    kind = method_class(name)
    if lacking := sorted(getattr(kind, "__abstractmethods__", ())):
        raise InputError(f"method {name} is not complete: {kind.__name__} must define {' and '.join(lacking)}")
    declared = settings_of(kind)
    for option in options:
        if not declared:
            raise InputError(f"{name} has no options; found {option!r}")
        if option not in declared:
            raise unknown(f"option of {name}", option, declared)
    label = kind.option_label()
    return kind(**{option: declared[option].checked(v, label.format(option)) for option, v in options.items()})
