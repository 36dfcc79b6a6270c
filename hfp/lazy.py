"""Packages whose names are loaded when they are first used: torch takes seconds, and many commands don't need it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Mapping
from importlib import import_module

TYPE_CHECKING = False  # typing's own is not loaded before the command handles signals

if TYPE_CHECKING:
    from typing import Any


def lazily(
    package: str, homes: Mapping[str, str], modules: Collection[str] = ()
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Make the ``__getattr__`` and ``__dir__`` of a package (PEP 562).

    Args:
        package: its ``__name__``.
        homes: by module, the names that the package offers of it, with spaces between them.
        modules: modules in the package that it offers themselves.

    No offered name may be that of a module in the package, which Python would put in its place.
    """
    places = {name: home for home, names in homes.items() for name in names.split()}

    def load(name: str) -> Any:
        if name in modules:
            return _imported(f"{package}.{name}")
        if name not in places:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(_imported(places[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *places, *modules})

    return load, names


def _imported(module: str) -> Any:
    """Import a module, and keep Python's random state, which rich draws from when it is loaded."""
    import random

    state = random.getstate()
    try:
        return import_module(module)
    finally:
        random.setstate(state)
