"""The arguments of ``hfp compare``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from hfp.commands.arguments.checkpoint import add_checkpoint, check_checkpoint
from hfp.commands.arguments.settings import add_setting, add_settings, check_given, read_pair
from hfp.comparison.definition import AXES, axes, checked_axes, read_comparison
from hfp.errors import InputError, unknown
from hfp.federation.experiment import Experiment
from hfp.methods.interface.registry import method_names
from hfp.methods.interface.sources import check_option_names
from hfp.models.names import check_model_name
from hfp.settings import settings_of

DESCRIPTION = "comparison.json"
"""The file in a comparison's folder that describes it."""

_FLAGS = {"alphas": "--alpha", "ranks": "--rank", "ratios": "--ratio", "batch_norms": "--batch-norm"}


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments; a file is read first, and arguments replace what it says."""
    group = parser.add_argument_group("what is compared")
    group.add_argument(
        "--file",
        type=Path,
        metavar="TOML",
        help="The comparison is described in this file, which may be the comparison.json of an earlier one.",
    )
    for name, declared in axes().items():
        over: dict[str, Any] = {"type": _seeds} if name == "seeds" else {}
        add_setting(group, declared, flags=[_FLAGS.get(name, f"--{name}")], **over)
    group.add_argument(
        "--option",
        dest="method_options",
        action="append",
        type=_option,
        metavar="METHOD.NAME=VALUE",
        help="One of the methods has this option; it may be given several times.",
    )
    groups = add_settings(parser, without=(*AXES, "patience"))
    groups["devices"].add_argument(
        "--jobs",
        type=int,
        metavar="N",
        help="This many runs go on at once, at most all of them, and each trains its clients one after the other. "
        "[default: one per core on the processor; at least 1]",
    )
    groups["output"].add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="Results are written to this folder, new or an earlier comparison's, whose finished runs are kept. "
        "[default: a fresh one under runs/]",
    )
    groups["output"].add_argument(
        "--resume",
        type=Path,
        metavar="FOLDER",
        help="The comparison in this folder goes on, and its finished runs are kept. Other arguments replace what its "
        "description says.",
    )
    add_checkpoint(groups["output"])
    groups["output"].add_argument(
        "--json",
        action="store_true",
        help="The result is printed as one JSON document, and progress goes to standard error.",
    )


def check(arguments: argparse.Namespace) -> None:
    """Refuse what can be refused before torch is loaded.

    Raises:
        InputError: a value is of another kind, outside its range, or a name that isn't known.
    """
    _resume(arguments)
    if arguments.file is not None:
        _check_document(read_comparison(arguments.file))
    axes_of(arguments)
    check_given(arguments)
    check_checkpoint(arguments)
    if arguments.jobs is not None and arguments.jobs < 1:
        raise InputError(f"jobs must be at least 1; found {arguments.jobs}")
    options = arguments.method_options or ()
    for method, name, _ in options:
        check_option_names(method, [name])
    settings_of(Experiment)["options"].gathered((f"{method}.{name}", value) for method, name, value in options)


def _resume(arguments: argparse.Namespace) -> None:
    """Take the description and the folder from the comparison that goes on.

    Raises:
        InputError: they are given too.
    """
    folder = arguments.resume
    if folder is None:
        return
    for name in ("file", "out"):
        if getattr(arguments, name) is not None:
            raise InputError(
                f"--{name} must be left out with --resume, which says it too; found {getattr(arguments, name)}"
            )
    if not (folder / DESCRIPTION).is_file():
        raise InputError(f"there is no comparison in {folder}; give the folder of one to --resume")
    arguments.file, arguments.out = folder / DESCRIPTION, folder


def _check_document(document: dict[str, Any]) -> None:
    """Refuse axes and settings of a file that are not known; the comparison itself checks everything."""
    for name, check in (("compare", checked_axes), ("experiment", _check_settings)):
        if isinstance(document.get(name), dict):
            check(document[name])


def _check_settings(given: dict[str, Any]) -> None:
    declared = settings_of(Experiment)
    for name in given:
        if name not in declared:
            raise unknown("field of an experiment (in base)", name, declared)
        declared[name].checked(given[name])
    if isinstance(given.get("model"), str):
        check_model_name(given["model"])


def axes_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the axes of a comparison that the arguments give."""
    given = {name: getattr(arguments, name) for name in axes()}
    return checked_axes({name: value for name, value in given.items() if value is not None})


def _seeds(text: str) -> Any:
    """Read a number of seeds, or seeds with commas; ``4,`` is the seed 4 alone."""
    seeds = axes()["seeds"].read(text.removesuffix(","))
    return [seeds] if text.endswith(",") else seeds


def _option(text: str) -> tuple[str, str, Any]:
    name, value = read_pair(text)
    method, dot, own = name.partition(".")
    known = {known.replace("-", "_"): known for known in method_names()}
    if not dot:
        raise argparse.ArgumentTypeError(f"expected METHOD.NAME=VALUE; found {text!r}")
    if method not in known:
        raise argparse.ArgumentTypeError(str(unknown("method", method, method_names())))
    return known[method], own, value
