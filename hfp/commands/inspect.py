"""``hfp inspect``: what a run's folder or a pruned model holds, or what is coupled in a full model."""

from __future__ import annotations

import argparse
from typing import Any

import torch
from rich.console import Console

from hfp.atomic import write_atomically
from hfp.commands.inspect_file import say_written, show_pruned_file
from hfp.commands.printing import print_json
from hfp.errors import InputError, described, printable
from hfp.language.names import RECORD
from hfp.language.record import PruneRecord
from hfp.language.report import FolderReport
from hfp.models.source import FullModel, full_model, images_of, imported, is_model
from hfp.pruning.coupled import coupled_report
from hfp.pruning.coupled_page import coupled_page
from hfp.results.files import run_folder
from hfp.results.load import is_run, refuse_full_model
from hfp.results.overview import run_overview
from hfp.results.page import run_page


def run(arguments: argparse.Namespace) -> int:
    """Read and show; returns 0."""
    if not arguments.file.exists() and is_model(str(arguments.file)):
        return _show_coupled(arguments)
    for option in ("inputs", "part"):
        if getattr(arguments, option) is not None:
            raise InputError(f"--{option} is for full models, before they are pruned; {arguments.file} is none")
    if (arguments.file / RECORD).is_file():
        return _show_language_folder(arguments)
    if is_run(arguments.file):
        return _show_run(arguments)
    if not arguments.file.exists():
        raise InputError(f"there is no file {arguments.file}, and no model of this name")
    refuse_full_model(arguments.file)
    return show_pruned_file(arguments)


def _show_run(arguments: argparse.Namespace) -> int:
    """Show what a run's folder holds; returns 0."""
    for option in ("model", "image_size", "picture"):
        if getattr(arguments, option) is not None:
            raise InputError(f"--{option.replace('_', '-')} is for files of pruned models; {arguments.file} is a run")
    folder = run_folder(arguments.file)
    found = run_overview(folder)
    if arguments.html is not None:
        write_atomically(arguments.html, run_page(folder).encode())
    if arguments.json:
        print_json(found)
        return 0
    console = Console(highlight=False)
    for line in run_lines(found):
        console.print(printable(line), soft_wrap=True, markup=False)
    say_written(console, arguments)
    return 0


def _show_language_folder(arguments: argparse.Namespace) -> int:
    """Show how a language model's folder was pruned; returns 0."""
    for option in ("model", "image_size", "picture", "html"):
        if getattr(arguments, option) is not None:
            raise InputError(
                f"--{option.replace('_', '-')} is not for a pruned language model's folder; {arguments.file} is one"
            )
    record = PruneRecord.read(arguments.file)
    report = FolderReport.from_dict(record.report)
    if arguments.json:
        print_json({**report.as_dict(), "libraries": dict(record.libraries)})
        return 0
    console = Console(highlight=False)
    for line in repr(report).split("\n"):
        console.print(printable(line), soft_wrap=True, markup=False)
    versions = ", ".join(f"{name} {version}" for name, version in record.libraries.items())
    console.print(printable(f"written by: {versions}"), soft_wrap=True, markup=False)
    return 0


def _show_coupled(arguments: argparse.Namespace) -> int:
    """Show what is coupled in a full model; returns 0."""
    for option in ("model", "picture"):
        if getattr(arguments, option) is not None:
            raise InputError(f"--{option} is for files of pruned models; {arguments.file} is a full model")
    name = str(arguments.file)
    full = full_model(name, image_size=arguments.image_size)
    report = coupled_report(full.model.eval(), _example_inputs(full, arguments), name, arguments.part)
    if arguments.html is not None:
        write_atomically(arguments.html, coupled_page(report).encode())
    if arguments.json:
        print_json(report.as_dict())
        return 0
    console = Console(highlight=False)
    console.print(report.shown())
    say_written(console, arguments)
    return 0


def _example_inputs(full: FullModel, arguments: argparse.Namespace) -> Any:
    """Return what the model is called with: what is given, its own example, or two images."""
    if arguments.inputs is not None:
        found = imported(arguments.inputs, "function")
        if not callable(found):
            raise InputError(f"--inputs {arguments.inputs} gave a {type(found).__name__}; expected a callable")
        try:
            return found()
        except Exception as error:  # it is the caller's code
            raise InputError(f"--inputs {arguments.inputs} can't be called: {described(error)}") from error
    own = getattr(full.model, "dummy_inputs", None)  # models of transformers have it
    if isinstance(own, dict) and all(isinstance(value, torch.Tensor) for value in own.values()):
        cached = hasattr(getattr(full.model, "config", None), "use_cache")
        return {**own, "use_cache": False} if cached else own  # a cache that is returned would be an output, and stay
    return images_of(full.shape)


def run_lines(found: dict[str, Any]) -> list[str]:
    """Write a run's overview (`hfp.results.overview`) as lines of text."""
    accuracy = "not tested yet" if found["accuracy"] is None else f"accuracy {found['accuracy']:.2f} %"
    clients = ", ".join(map(str, found["trained_clients"])) or "none (hfp run --save-clients saves them)"
    taken, classes = found["input"], found["classes"]
    units = "floats" if taken["largest"] is None else f"{taken['dtype']} 0 to {taken['largest']}"
    lines = [
        f"{found['folder']}: a run of {found['method']} on {found['dataset']} with {found['clients']} clients",
        f"global model: {found['model']}, {found['entries']:,} numbers, {accuracy} after {found['rounds']} of "
        f"{found['rounds_planned']} rounds",
        f"ended: {found['ended'] or 'no, it can go on'}",
        f"takes: {' x '.join(map(str, taken['shape']))}, {units} in the data set's units",
        f"{len(classes)} classes: {', '.join(classes[:12])}{', ...' if len(classes) > 12 else ''}",
        f"clients' models as trained: {clients}",
        f"written by: hfp {found['hfp']}",
        f"load it: {found['load']}",
    ]
    return lines + [f"use it: {found[name]}" for name in ("predict", "extract") if found[name]]
