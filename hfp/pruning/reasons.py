"""Lines that tell a reason once, with all that it is about."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from hfp.errors import listed


def by_reason(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Sort pairs of a name and a reason: reason -> the names, in their order."""
    found: dict[str, list[str]] = {}
    for name, reason in pairs:
        found.setdefault(reason, []).append(name)
    return found


def reason_lines(what: str, pairs: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Yield a line for each reason.

    >>> from hfp.pruning.reasons import reason_lines
    >>> list(reason_lines("left alone", [("fc", "it is an output of the model")]))
    ['left alone: fc: it is an output of the model']
    """
    for reason, names in by_reason(pairs).items():
        yield f"{what}: {listed(names, most=4)}: {reason}"
