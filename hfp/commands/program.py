"""The program ``hfp``: it handles signals before it loads anything else.

A signal that comes before `main` runs meets Python's own handlers: Ctrl-C while the interpreter itself starts prints
Python's traceback. This file and what is imported before it are small, so that the moment is short.
"""

from hfp.commands.interruption import Signals


def main() -> int:
    """Run the command of the command line; returns its exit status."""
    signals = Signals()
    signals.install()
    from hfp.commands import cli

    return cli.main(signals=signals)
