"""Cases of tests that take long in sum: a few run by default, the others with the slow tests."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def by_default(quick: Iterable[str], cases: Iterable[Any]) -> list[Any]:
    """Return the parameters of a test, of which the cases that are not `quick` are slow.

    A case is a method's name, or a tuple that begins with it.
    """
    quick, cases = set(quick), list(cases)
    names = [case if isinstance(case, str) else case[0] for case in cases]
    assert quick <= set(names), f"no such cases: {sorted(quick - set(names))}"
    return [
        pytest.param(*([case] if isinstance(case, str) else case), marks=[] if name in quick else pytest.mark.slow)
        for name, case in zip(names, cases, strict=True)
    ]
