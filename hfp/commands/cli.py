"""The command line: ``hfp COMMAND``. A wrong input is one line on standard error and exit status 2."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module, metadata
from typing import NoReturn

COMMANDS: dict[str, tuple[str, str, str]] = {
    "run": ("hfp.commands.run", "run", "run one federated experiment (without arguments: the embedded default)"),
    "compare": ("hfp.commands.compare", "run", "run several federated methods on equal terms, and report"),
    "prune": ("hfp.commands.prune", "run", "prune one model to a budget, and save it"),
    "inspect": ("hfp.commands.inspect", "run", "show what a file of a pruned model holds"),
    "flower": ("hfp.commands.flower", "run", "try a federation on Flower out, with processes on this machine"),
    "methods": ("hfp.commands.listing", "run_methods", "list the federated methods and their papers"),
    "criteria": ("hfp.commands.listing", "run_criteria", "list the criteria that score channels, and their papers"),
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    arguments = build_parser(words).parse_args(words)
    module, function, _ = COMMANDS[arguments.command]
    try:
        return getattr(import_module(module), function)(arguments)
    except _expected_errors() as error:
        message = " ".join(str(error).split())
        print(f"hfp {arguments.command}: {message}", file=sys.stderr)
        return 2


def build_parser(words: Sequence[str]) -> argparse.ArgumentParser:
    """The parser for a command line of these `words`: torch takes seconds, so only the typed command is loaded."""
    typed = next((word for word in words if not word.startswith("-")), None)
    parser = _Parser(prog="hfp", description="Structured pruning that can be undone, shared and federated.")
    parser.add_argument("--version", action="version", version=f"hfp {metadata.version('hfp')}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=_Parser)
    for name, (module, _, text) in COMMANDS.items():
        subparser = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        if name == typed:
            import_module(module).configure(subparser)
    return parser


def _expected_errors() -> tuple[type[Exception], ...]:
    from hfp.errors import InputError
    from hfp.importance import CriterionError
    from hfp.reconstruct import MapError

    return InputError, CriterionError, MapError


if __name__ == "__main__":
    sys.exit(main())
