"""The command line: ``hfp COMMAND``. A wrong input is one line on standard error and exit status 2.

What a command takes is parsed and checked before the command itself is loaded, and torch with it.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module, metadata
from types import ModuleType
from typing import Any

from hfp.commands.arguments.parser import Parser
from hfp.commands.interruption import Signals
from hfp.commands.printing import document_alone
from hfp.errors import InputError, printable, unknown
from hfp.importance import CriterionError


@dataclass(frozen=True)
class Command:
    """A command: what it does, the modules of its arguments and of its work, and the function that does the work."""

    text: str
    arguments: str
    module: str
    function: str = "run"


COMMANDS: dict[str, Command] = {
    "run": Command("run one federated experiment (without arguments: the embedded default)", "run", "run"),
    "compare": Command("run several federated methods on equal terms, and report", "compare", "compare"),
    "prune": Command("prune one model to a budget, and save it", "prune", "prune"),
    "perplexity": Command("measure how well a language model in a folder predicts a text", "perplexity", "perplexity"),
    "inspect": Command("show what a run's folder or a pruned model holds", "inspect", "inspect"),
    "predict": Command("classify images with a run's model", "predict", "predict"),
    "extract": Command("write a client's own model, or the global one, out of a run's folder", "extract", "extract"),
    "flower": Command("try a federation on Flower out, with processes on this machine", "flower", "flower"),
    "methods": Command("list the federated methods, or one method's options", "methods", "listing", "run_methods"),
    "criteria": Command(
        "list the criteria that score channels, or one's options", "criteria", "listing", "run_criteria"
    ),
}


def main(argv: Sequence[str] | None = None, signals: Signals | None = None) -> int:
    """Run a command; returns its exit status.

    Args:
        argv: the words after ``hfp``; by default those of the command line.
        signals: what handles signals (`program`); by default nothing does.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if words and not words[0].startswith("-") and words[0] not in COMMANDS:
        print(f"hfp: {unknown('command', words[0], COMMANDS)}", file=sys.stderr)
        return 2
    arguments = build_parser(words).parse_args(words)
    with warnings.catch_warnings():
        warnings.showwarning = _shown_plainly(arguments.command)
        return _status(arguments.command, lambda: _begun(arguments, signals or Signals()))


def build_parser(words: Sequence[str]) -> Parser:
    """Make the parser for a command line of these `words`, with the arguments of the typed command alone."""
    typed = next((word for word in words if not word.startswith("-")), None)
    parser = Parser(prog="hfp", description="Structured pruning that can be undone, shared and federated.")
    parser.add_argument("--version", action="version", version=f"hfp {metadata.version('hfp')}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=Parser)
    for name, command in COMMANDS.items():
        text = command.text
        subparser = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        if name == typed:
            _arguments_of(command).configure(subparser)
    return parser


def _begun(arguments: argparse.Namespace, signals: Signals) -> int:
    """Check the arguments, load what the command needs, and run it; only then can a signal stop it gently."""
    command = COMMANDS[arguments.command]
    getattr(_arguments_of(command), "check", _nothing)(arguments)
    work = getattr(import_module(f"hfp.commands.{command.module}"), command.function)
    with document_alone() if getattr(arguments, "json", False) else contextlib.nullcontext():
        return signals.gently(lambda: _status(arguments.command, lambda: work(arguments)))


def _status(command: str, work: Callable[[], int]) -> int:
    """Return what `work` returns, or 2 after a line that says why it can't be done."""
    try:
        return work()
    except (KeyboardInterrupt, BrokenPipeError):  # whoever reads the output may stop
        raise
    except OSError as error:
        what = error.strerror or str(error)
        return _refused(command, what if error.filename is None else f"{error.filename}: {what}")
    except (InputError, CriterionError) as error:
        return _refused(command, error)
    except _map_error() as error:
        return _refused(command, error)


def _refused(command: str, why: Exception | str) -> int:
    print(_line(command, why), file=sys.stderr)
    return 2


def _line(command: str, what: Exception | str) -> str:
    return f"hfp {command}: {printable(' '.join(str(what).split()))}"


def _arguments_of(command: Command) -> ModuleType:
    return import_module(f"hfp.commands.arguments.{command.arguments}")


def _nothing(arguments: argparse.Namespace) -> None:
    """Most commands have no more to check."""


def _shown_plainly(command: str) -> Callable[..., None]:
    """Shows what a user is warned of as one line, once; other warnings are for developers and look as usual."""
    usual, said = warnings.showwarning, set[str]()

    def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        line = _line(command, message)
        if category is UserWarning or issubclass(category, FutureWarning):
            if line not in said:
                print(line, file=sys.stderr)
            said.add(line)
        else:
            usual(message, category, *place, **more)

    return show


def _map_error() -> type[Exception]:
    from hfp.reconstruct import MapError  # with torch, which an early refusal does not wait for

    return MapError
