"""The program ``hfp``: it handles signals before it loads anything else.

A signal that comes before `main` runs meets Python's own handlers: Ctrl-C while the interpreter itself starts prints
Python's traceback. This file and what is imported before it are small, so that the moment is short.
"""

import io
import os
import sys

from hfp.commands.interruption import Signals


def main() -> int:
    """Run the command of the command line; returns its exit status, which is 1 where its output can't be written."""
    signals = Signals()
    signals.install()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # for names that are no text, and terminals of few letters
    from hfp.commands import cli

    status = 0
    try:
        status = cli.main(signals=signals)
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes once more at its end
        if not status and not isinstance(error, BrokenPipeError):  # a reader that stops, such as head, knows that
            print(f"hfp: the output can't be written: {error.strerror}", file=sys.stderr)
        status = status or 1
    return status
