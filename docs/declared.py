"""A Sphinx extension that writes reference pages from what the code declares, before each build.

The pages go to `docs/reference/generated/`, which git ignores: flags come from the parsers, settings from the
declarations of `hfp.settings`, and methods and criteria from their registries.
"""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hfp import importance
from hfp.commands.cli import COMMANDS, build_parser
from hfp.federation.experiment import Experiment
from hfp.importance.options import criterion_options
from hfp.importance.registry import factory_of
from hfp.methods import methods
from hfp.settings import markdown, settings_of

_NEEDS = {
    "nothing": "It needs no data.",
    "data": "It needs data.",
    "variation": "It needs a federation's record of how its clients' models moved.",
}
FOLDER = Path(__file__).parent / "reference" / "generated"


def setup(app: Any) -> dict[str, Any]:
    """Write the pages when a build begins."""
    app.connect("builder-inited", lambda app: write_pages())
    return {"version": "1", "parallel_read_safe": True}


def write_pages(folder: Path = FOLDER) -> None:
    """Write all pages; one that would not change is left as it is, so that Sphinx does not read it again."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, page in (
        ("command-line", command_line()),
        ("settings", settings_page()),
        ("methods", methods_page()),
        ("criteria", criteria_page()),
    ):
        path = folder / f"{name}.md"
        if not path.exists() or path.read_text(encoding="utf-8") != page:
            path.write_text(page, encoding="utf-8")


def command_line() -> str:
    """Every command with its flags, as its parser declares them."""
    parts = [
        "# Command line",
        "`hfp COMMAND --help` prints the same. A wrong input is one line on standard error and exit status 2.",
    ]
    for name in COMMANDS:
        parts += _parser_parts(_subparsers(build_parser([name]))[name], level=2)
    return "\n\n".join(parts) + "\n"


def settings_page() -> str:
    """The settings of an experiment, one table a group."""
    table = markdown(settings_of(Experiment).values())
    return (
        "# Settings of a run\n\nThese are the fields of {py:class}`hfp.Experiment`. On the command line a setting is a "
        "flag with hyphens, for instance `--head-start` for `head_start`; in a file of `hfp compare` it is a key.\n\n"
        + table.replace("### ", "## ")
    )


def methods_page() -> str:
    """Every federated method with its options."""
    parts = ["# Methods", "`hfp methods NAME` prints the same. Options are given as `--option NAME=VALUE`."]
    for method in methods():
        parts += [
            f"## {method.name}",
            f"{_summary(method.summary)} Source: {method.source}.",
            *_options(settings_of(method).values()),
        ]
    return "\n\n".join(parts) + "\n"


def criteria_page() -> str:
    """Every criterion with its options."""
    parts = [
        "# Criteria",
        "`hfp criteria NAME` prints source and options. `hfp.importance.create(NAME, OPTION=VALUE)` makes a criterion.",
    ]
    for name in importance.names():
        info = importance.describe(name)
        parts += [
            f"## {name}",
            _criterion_summary(name),
            f"{_NEEDS[info.needs]} Source: {info.source}.",
            *_options(criterion_options(name).values()),
        ]
    return "\n\n".join(parts) + "\n"


def _criterion_summary(name: str) -> str:
    """What a criterion scores by, and the class that says it in full."""
    factory = factory_of(name)
    if factory.__name__ not in importance.__all__:
        return (inspect.getdoc(factory) or "").partition("\n")[0]
    shared = factory.__module__.endswith(".shipped")  # a module of several criteria
    text = inspect.getdoc(factory if shared else inspect.getmodule(factory)) or ""
    plain = text.partition("\n")[0] if shared else " ".join(text.split())
    return f"{plain} {{py:class}}`hfp.importance.{factory.__name__}` says more."


def _options(declared: Iterable[Any]) -> list[str]:
    found = list(declared)
    return [markdown(found).rstrip()] if found else ["It has no options of its own."]


def _summary(text: str) -> str:
    """A method's summary as a sentence; one that begins with a method's name keeps its small letter."""
    begins_with_name = text.split(maxsplit=1)[0] in {method.name for method in methods()}
    return f"{text.rstrip('.')}." if begins_with_name else _sentence(text)


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:].rstrip('.')}." if text else ""


def _parser_parts(parser: argparse.ArgumentParser, level: int) -> list[str]:
    parts = [f"{'#' * level} {parser.prog}", _sentence(parser.description or "")]
    for group in parser._action_groups:
        actions = [
            one
            for one in group._group_actions
            if not isinstance(one, argparse._HelpAction | argparse._SubParsersAction)
        ]
        if not actions:
            continue
        if group.title not in ("positional arguments", "options"):
            parts.append(f"**{_heading(group.title or '')}**")
        if group.description:
            parts.append(_plain(group.description))
        rows = [f"| {_invocation(one)} | {_plain(_help(parser, one))} |" for one in actions]
        parts.append("\n".join(["| argument | meaning |", "|---|---|", *rows]))
    if parser.epilog:
        parts.append(_plain(" ".join(parser.epilog.split())))
    for subparser in _subparsers(parser).values():
        parts += _parser_parts(subparser, level + 1)
    return parts


def _subparsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    found = (one for one in parser._actions if isinstance(one, argparse._SubParsersAction))
    return dict(next((one.choices for one in found), {}))


def _invocation(action: argparse.Action) -> str:
    """The names of an argument, the first with its value, each as code of its own so that none is broken in two."""
    if not action.option_strings:
        return f"`{action.metavar or action.dest}`"
    first, *others = action.option_strings
    if action.nargs != 0:
        value = argparse.HelpFormatter("hfp")._format_args(action, str(action.metavar or action.dest.upper()))
        first = f"{first} {value}".replace("|", "\\|")
    return ", ".join(f"`{name}`" for name in (first, *others))


def _help(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    return parser._get_formatter()._expand_help(action) if action.help else ""


def _heading(text: str) -> str:
    return text[:1].upper() + text[1:]


def _plain(text: str) -> str:
    """Text of a terminal as Markdown: nothing in it is markup."""
    for character in "\\*_<>|[]":
        text = text.replace(character, f"\\{character}")
    return inspect.cleandoc(text)
