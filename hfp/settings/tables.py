"""Render what is declared as rows and as Markdown, for the help, for lists and for the documentation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from hfp.settings.setting import Setting


def described(declared: Setting) -> dict[str, Any]:
    """Return one setting as plain values: its name, default, allowed values, unit and sentence."""
    return {
        "name": declared.name,
        "default": dict(declared.default) if isinstance(declared.default, Mapping) else declared.default,
        "allowed": allowed(declared),
        "unit": declared.unit,
        "help": sentence(declared),
    }


def allowed(declared: Setting) -> str:
    """Return the values that a setting may have, in a few words."""
    if declared.within is not None:
        return declared.within.words(declared.kind)
    if declared.choices is not None:
        return ", ".join(map(str, declared.known))
    return declared.expected


def default_text(declared: Setting) -> str:
    """Return the default as a person writes it; empty for None and for an empty table."""
    if isinstance(declared.default, bool):
        return "yes" if declared.default else "no"
    if isinstance(declared.default, (tuple, list)):
        return ",".join(map(str, declared.default))
    return "" if declared.default is None or declared.default == {} else str(declared.default)


def sentence(declared: Setting) -> str:
    """Return the setting's sentence, with a phrase about each of its choices."""
    if not isinstance(declared.choices, Mapping):
        return declared.help
    told = "; ".join(f"{name}: {phrase}" for name, phrase in declared.choices.items())
    return f"{declared.help.removesuffix('.')} ({told})."


def markdown(settings: Iterable[Setting]) -> str:
    """Return a table of settings for each of their groups, in Markdown, the groups in the order of their first ones."""
    groups: dict[str, list[Setting]] = {}
    for declared in settings:
        groups.setdefault(declared.group, []).append(declared)
    parts = []
    for group, members in groups.items():
        cells = ((f"`{one.name}`", default_text(one), allowed(one), sentence(one)) for one in members)
        rows = [f"| {' | '.join(map(_cell, row))} |" for row in cells]
        heading = f"### {group.capitalize()}\n\n" if group else ""
        parts.append(heading + "\n".join(["| setting | default | allowed | meaning |", "|---|---|---|---|", *rows]))
    return "\n\n".join(parts) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
