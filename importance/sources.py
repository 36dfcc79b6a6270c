"""Reads the options of a bundled criterion from the text of its file, because loading the file would load torch."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path
from typing import Any

HOME = "hfp.importance."


@cache
def defaults_in_source(module: str, name: str) -> dict[str, Any]:
    """Return the parameters of a function, or of what makes a class, that have defaults; each with its default.

    Args:
        module: a module in `HOME`.
        name: the function or class in it. A class without ``__init__`` has the parameters of its first base that is in
            `HOME` and has some.

    >>> defaults_in_source("hfp.importance.criteria.sampled_fisher", "SampledFisherImportance")
    {'form': 'curvature', 'reduction': 'sum', 'seed': 0}
    """
    file = Path(__file__).parent.joinpath(*module.removeprefix(HOME).split(".")).with_suffix(".py")
    body = ast.parse(file.read_text(encoding="utf-8")).body
    found = next((one for one in body if isinstance(one, (ast.ClassDef, ast.FunctionDef)) and one.name == name), None)
    if isinstance(found, ast.FunctionDef):
        return _defaults(found.args)
    for one in found.body if found else ():
        if isinstance(one, ast.FunctionDef) and one.name == "__init__":
            return _defaults(one.args)
    origins = {alias.name: one.module or "" for one in body if isinstance(one, ast.ImportFrom) for alias in one.names}
    for base in found.bases if found else ():
        origin = origins.get(ast.unparse(base), "")
        if origin.startswith(HOME):
            return defaults_in_source(origin, ast.unparse(base))
    return {}


def _defaults(parameters: ast.arguments) -> dict[str, Any]:
    positional = [*parameters.posonlyargs, *parameters.args]
    last = positional[len(positional) - len(parameters.defaults) :]
    pairs = [
        *zip(last, parameters.defaults, strict=True),
        *zip(parameters.kwonlyargs, parameters.kw_defaults, strict=True),
    ]
    return {parameter.arg: ast.literal_eval(default) for parameter, default in pairs if default is not None}
