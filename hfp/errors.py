"""The error that a person's input causes, and what it suggests for an unknown name."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from os.path import isdir
from typing import Any

MOST = 20
"""How many names a message lists at most."""


class InputError(ValueError):
    """Something that the caller gave can't be used.

    The message is one line that says what was expected, what was found, and what to do. Commands print it and exit
    with status 2.

    >>> import hfp
    >>> try:
    ...     hfp.Experiment(method="ca-hpf")
    ... except hfp.InputError as error:
    ...     print(error)
    unknown method 'ca-hpf'; did you mean ca-hfp or ca-hfp-paper?
    """


def unknown(kind: str, name: str, known: Iterable[str]) -> InputError:
    """Make an `InputError` for a name that isn't known, with the nearest known names, or all if they are few."""
    names = sorted(set(known))
    near = get_close_matches(name, names, n=3, cutoff=0.5)
    if near:
        hint = f"did you mean {' or '.join(near)}?"
    elif kind == "data set" and isdir(name):
        hint = f"the images of a folder are given with --data imagefolder --data-root {name}"
    elif len(names) <= MOST:
        hint = f"known: {', '.join(names)}"
    else:
        hint = f"none of the {len(names):,} known names is like it"
    return InputError(f"unknown {kind} {name!r}; {hint}")


@contextlib.contextmanager
def file_errors(what: str) -> Iterator[None]:
    """Turn errors of the file system, and of text that is not UTF-8, into one line that says what was not done.

    >>> from hfp.errors import InputError, file_errors
    >>> try:
    ...     with file_errors("the notes can't be read"):
    ...         open("no/such/notes.txt")
    ... except InputError as error:
    ...     print(error)
    the notes can't be read: No such file or directory
    """
    try:
        yield
    except (OSError, UnicodeError) as error:
        raise InputError(f"{what}: {getattr(error, 'strerror', None) or error}") from error


def printable(text: object) -> str:
    r"""Return text from a file or a message as a terminal may show it, with escapes for its control characters.

    >>> print(printable("layer\x1b[2J"))
    layer\x1b[2J
    """
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii") for letter in str(text)
    )


def listed(words: Sequence[str], between: str = ", ", most: int = MOST) -> str:
    """Join words in one line: the first of them, and how many more there are.

    >>> from hfp.errors import listed
    >>> listed(["conv1", "conv2", "fc"], most=1)
    'conv1, and 2 more'
    """
    more = len(words) - most
    return between.join(words[:most]) + (f"{between}and {more:,} more" if more > 0 else "")


def counted(number: int, thing: str) -> str:
    """Return a number and a noun in the right form, such as "1 group" and "1,200 groups"."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def repeated(values: Sequence[Any]) -> Any | None:
    """Return the first of some values that is there more than once; None where each is there once.

    >>> from hfp.errors import repeated
    >>> repeated(["bias", "batch-norm", "bias"])
    'bias'
    """
    return next((value for value in values if values.count(value) > 1), None)


def message_of(error: BaseException, most: int = 200) -> str:
    """Return an error's message in one line of at most so many letters."""
    return " ".join(str(error).split())[:most]


def first_line(error: BaseException) -> str:
    r"""Return the first line of an error's message, or the error's kind where it has none.

    >>> from hfp.errors import first_line
    >>> first_line(RuntimeError("no device\nis there")), first_line(TimeoutError())
    ('no device', 'TimeoutError')
    """
    return next((line for line in map(str.strip, str(error).splitlines()) if line), type(error).__name__)


def described(error: BaseException) -> str:
    """Return an error's kind and message in one line, to say what somebody else's code did.

    >>> from hfp.errors import described
    >>> described(KeyError("weight"))
    "KeyError: 'weight'"
    """
    return f"{type(error).__name__}: {message_of(error)}"
