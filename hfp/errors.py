"""The error that a person's input causes, and the suggestion that goes with an unknown name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches

MOST = 20
"""Names that a message lists."""


class InputError(ValueError):
    """Something the caller gave can't be used; the message says what was expected, found, and what to do."""


def unknown(kind: str, name: str, known: Iterable[str]) -> InputError:
    """An `InputError` for a name that isn't known, with the nearest known ones (or all, when few)."""
    names = sorted(known)
    near = get_close_matches(name, names, n=3, cutoff=0.5)
    if near:
        hint = f"did you mean {' or '.join(near)}?"
    elif len(names) <= MOST:
        hint = f"known: {', '.join(names)}"
    else:
        hint = f"none of the {len(names):,} known names is like it"
    return InputError(f"unknown {kind} {name!r}; {hint}")


def listed(words: Sequence[str], between: str = ", ") -> str:
    """Words in one line, the first `MOST` of them and how many more there are."""
    more = len(words) - MOST
    return between.join(words[:MOST]) + (f"{between}and {more:,} more" if more > 0 else "")
