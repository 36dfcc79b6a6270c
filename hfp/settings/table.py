"""A table that nobody changes, and that can be copied, pickled and written as JSON, unlike Python's own."""

from __future__ import annotations

from typing import Any, NoReturn


class Table(dict[Any, Any]):
    """A read-only dictionary.

    >>> Table(mu=0.1)["mu"]
    0.1
    >>> Table(mu=0.1)["mu"] = 1
    Traceback (most recent call last):
    TypeError: a setting's table does not support item assignment; make a new one
    """

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError("a setting's table does not support item assignment; make a new one")

    __setitem__ = __delitem__ = __ior__ = clear = pop = popitem = setdefault = update = _refuse

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (dict(self),)
