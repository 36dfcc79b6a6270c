"""Flags that follow from the declarations of settings."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from hfp.data.load import IMAGES, check_root
from hfp.errors import InputError
from hfp.federation.experiment import Experiment
from hfp.methods.interface.sources import check_option_names
from hfp.models.names import check_model_name
from hfp.settings import PAIRS, Setting, pair, settings_of
from hfp.settings.tables import default_text, sentence

GROUPS = ("data", "model", "clients", "devices", "training", "method", "output")
"""The headings of the help, in their order."""


def add_settings(parser: argparse.ArgumentParser, without: Collection[str] = ()) -> dict[str, argparse._ArgumentGroup]:
    """Declare a flag for every field of `Experiment` but those in `without`; returns the groups of the help."""
    groups = {name: parser.add_argument_group(name) for name in GROUPS}
    for name, declared in settings_of(Experiment).items():
        if name not in without:
            add_setting(groups[declared.group], declared)
    return groups


def add_setting(
    parser: argparse._ActionsContainer, declared: Setting, flags: Collection[str] = (), **over: Any
) -> None:
    """Declare the flags of one setting; `over` goes to argparse in place of what is declared."""
    name = declared.name.removesuffix("s") if declared.shape == PAIRS else declared.name
    flags = flags or [f"--{flag.replace('_', '-')}" for flag in (name, *declared.aliases)]
    given: dict[str, Any] = {"dest": declared.name, "default": None, "help": help_of(declared)}
    if declared.kind is bool:
        given |= {"action": argparse.BooleanOptionalAction}
    elif declared.shape == PAIRS:
        given |= {"action": "append", "type": read_pair, "metavar": _value(declared)}
    else:
        given |= {"type": declared.read, "metavar": _value(declared)}
    parser.add_argument(*flags, **{**given, **over})


def help_of(declared: Setting) -> str:
    """Write the help of a flag: the setting's sentence, its default and its range."""
    default = default_text(declared)
    more = [f"default: {default}"] if default else []
    if declared.within is not None:
        more.append(declared.within.words(declared.kind))
    elif callable(declared.choices):
        more.append(f"one of {', '.join(map(str, declared.known))}")
    told = f"{sentence(declared)} [{'; '.join(more)}]" if more else sentence(declared)
    return told.replace("%", "%%")


def given_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the fields of `Experiment` that the arguments give, in normal form.

    Raises:
        InputError: a value is of another kind or outside its range, or one of a table is given twice.
    """
    given = {}
    for name, declared in settings_of(Experiment).items():
        value = getattr(arguments, name, None)
        if value is not None:
            given[name] = declared.checked(declared.gathered(value) if declared.shape == PAIRS else value)
    return {name: dict(value) if isinstance(value, Mapping) else value for name, value in given.items()}


def check_given(arguments: argparse.Namespace) -> None:
    """Refuse, before torch is loaded, settings that can't be, and files that are not there.

    Raises:
        InputError: a value is of another kind, outside its range, a name that isn't known, or a path where nothing is.
    """
    given = given_settings(arguments)
    elsewhere = any(getattr(arguments, name, None) is not None for name in ("file", "resume"))
    known = given if elsewhere else {"method": Experiment.method, "dataset": Experiment.dataset, **given}
    if "model" in known:
        check_model_name(known["model"])
    if "method" in known:
        check_option_names(known["method"], known.get("options", {}))
    check_weights(given.get("weights"))
    dataset = known.get("dataset")
    if given.get("image_size") is not None and dataset is not None and dataset in IMAGES:
        raise InputError(f"image_size is for imagefolder only; the images of {dataset} are {IMAGES[dataset][1]} wide")
    check_root(given.get("data_root"), None if elsewhere else dataset, given.get("download", False))
    clients_file = given.get("clients_file")
    if clients_file is not None and not Path(clients_file).exists():
        raise InputError(f"the clients file {clients_file} can't be read: there is no such file")


def check_weights(path: str | Path | None) -> None:
    """Refuse a file of weights that is not there."""
    if path is not None and not Path(path).is_file():
        raise InputError(f"no weights in {path}: there is no such file")


def read_pair(text: str) -> tuple[str, Any]:
    """Read ``NAME=VALUE`` as `hfp.settings.pair` does, for argparse."""
    try:
        return pair(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _value(declared: Setting) -> str:
    fallback = {int: "N", float: "NUMBER", str: "NAME"}.get(declared.kind, "VALUE")
    value = (declared.unit or fallback).upper()
    return value if declared.shape in ("one", PAIRS) else f"{value}[,{value}…]"
