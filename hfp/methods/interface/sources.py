"""Reads a bundled method's options from the text of its file, because loading the file would load torch."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from hfp.errors import InputError, unknown
from hfp.settings import settings_of

_FOLDER = Path(__file__).parents[1]
_LIGHT = ("collections.abc", "types", "typing", "hfp.settings", "hfp.methods.blocks.options")
_FACTS = ("name", "source", "summary")


class SourceOutline:
    """What is known of a method before it is loaded; a subclass is a dataclass with the method's own options."""

    name: ClassVar[str]
    source: ClassVar[str]
    summary: ClassVar[str]


def check_option_names(method: str, options: Iterable[str]) -> None:
    """Refuse names of options that a bundled method does not have, without loading it.

    Raises:
        InputError: the method has no option of a name; the message suggests the nearest known names.
    """
    found = outline(method)
    if found is None:
        return
    known = settings_of(found)
    for option in options:
        if option in known:
            continue
        if not known:
            raise InputError(f"{method} has no options; found {option!r}")
        raise unknown(f"option of {method}", option, known)


@functools.cache
def outline(method: str) -> type[SourceOutline] | None:
    """Return the outline of a bundled method, or None where there is no such method.

    The constants of the method's file and the fields of its class are evaluated; its functions are not. A field may
    name what `_LIGHT` offers and the file's own constants.
    """
    file = _FOLDER / f"{method.replace('-', '_')}.py"
    if not file.is_file():
        return None
    scope: dict[str, Any] = {"Method": SourceOutline}
    for statement in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(statement, ast.ImportFrom):
            _imported(statement, scope)
        elif isinstance(statement, ast.AnnAssign):
            _evaluated([statement], scope)
        elif isinstance(statement, ast.ClassDef) and _is_registered(statement):
            return _outlined(statement, scope)
    return None


def _imported(statement: ast.ImportFrom, scope: dict[str, Any]) -> None:
    module = statement.module or ""
    if module in _LIGHT:
        _evaluated([statement], scope)
    elif module.startswith("hfp.methods."):
        parent = outline(module.removeprefix("hfp.methods."))
        scope |= {parent.__name__: parent} if parent else {}


def _outlined(definition: ast.ClassDef, scope: dict[str, Any]) -> type[SourceOutline]:
    fields = [one for one in definition.body if isinstance(one, ast.AnnAssign) and _is_told(one)]
    definition.decorator_list, definition.body = [], [*fields, ast.Pass()]
    _evaluated([definition], scope)
    return dataclass(frozen=True)(scope[definition.name])


def _evaluated(statements: list[ast.stmt], scope: dict[str, Any]) -> None:
    later = ast.ImportFrom("__future__", [ast.alias("annotations")], 0)  # annotations may name what is not in scope
    scope["__name__"] = __name__  # where dataclasses look ClassVar up
    exec(compile(ast.fix_missing_locations(ast.Module([later, *statements], [])), __file__, "exec"), scope)


def _is_registered(definition: ast.ClassDef) -> bool:
    return any(isinstance(one, ast.Name) and one.id == "register" for one in definition.decorator_list)


def _is_told(field: ast.AnnAssign) -> bool:
    return not ast.unparse(field.annotation).startswith("ClassVar") or ast.unparse(field.target) in _FACTS
