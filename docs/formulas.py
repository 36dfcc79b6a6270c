"""A Sphinx extension for formulas: docstrings' LaTeX is read as such, and pages hold MathML, which needs no script.

A script that draws formulas would be loaded from the network; browsers draw MathML themselves, also offline.
"""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml

_INLINE = re.compile(r"\\\((.+?)\\\)", re.DOTALL)
_SHORT_FRACTION = re.compile(r"(\\[td]?frac)\s*(\d)\s*(\d)")
_own_words: dict[str, list[str]] = {}


def setup(app: Any) -> dict[str, Any]:
    """Register the renderer, and read docstrings before napoleon does."""
    app.connect("autodoc-process-docstring", _docstring, priority=100)
    app.connect("autodoc-process-docstring", _property, priority=900)
    app.add_html_math_renderer("mathml", (_inline, None), (_display, None))
    return {"version": "1", "parallel_read_safe": True}


def _docstring(app: Any, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    lines[:] = _INLINE.sub(_as_role, "\n".join(lines)).split("\n")
    if what in ("property", "attribute"):
        _own_words[name] = list(lines)


def _property(app: Any, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """Take back what napoleon does to a property: it reads "Which: these" as a type and its description."""
    lines[:] = _own_words.pop(name, lines)


def _as_role(found: re.Match[str]) -> str:
    following = found.string[found.end() : found.end() + 1]
    return f":math:`{found[1].strip()}`" + ("\\ " if following.isalnum() else "")


def _inline(translator: Any, node: nodes.Node) -> None:
    translator.body.append(_mathml(node, as_block=False))
    raise nodes.SkipNode


def _display(translator: Any, node: nodes.Node) -> None:
    translator.body.append(f'<div class="formula">{_mathml(node, as_block=True)}</div>')
    raise nodes.SkipNode


def _mathml(node: nodes.Node, as_block: bool) -> str:
    # docutils takes all digits after \\tfrac for one numerator
    return tex2mathml(_SHORT_FRACTION.sub(r"\1{\2}{\3}", node.astext()), as_block=as_block)
