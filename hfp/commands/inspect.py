"""``hfp inspect``: what a run's folder or a pruned model holds, or what is coupled in a full model."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import timm
import torch
from rich.console import Console
from rich.markup import escape
from torch import nn

from hfp.costs.macs import macs, parameters, state_bytes
from hfp.errors import InputError, printable
from hfp.language.names import RECORD
from hfp.language.record import PruneRecord
from hfp.language.report import FolderReport
from hfp.models.source import FullModel, full_model, imported, is_model
from hfp.pruning.coupled import coupled_report
from hfp.pruning.coupled_page import coupled_page
from hfp.pruning.layer_picture import save_layer_picture
from hfp.pruning.layers_report import LayerReport, layer_reports, tensor_reports
from hfp.pruning.tables import shown
from hfp.reconstruct import IndexMap, PrunedFile, TimmModel, compact_model, read_pruned
from hfp.results.atomic import write_atomically
from hfp.results.load import description_in, full_model_alone, is_run, skeleton_in
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
    alone = full_model_alone(arguments.file)
    if alone is not None:
        raise InputError(alone)
    stored = read_pruned(arguments.file)
    layers, costs = _described(stored, arguments)
    measured = stored.metadata.get("costs", {})
    if isinstance(measured, dict) and _is_pair(measured.get("latency")):
        before, after = measured["latency"]  # when it was pruned: the full model can't be timed without weights
        costs["latency"] = (before, after)
    if "bytes" in costs:  # which take the full model
        costs["file bytes"] = (costs["bytes"][0], arguments.file.stat().st_size)
    if arguments.picture is not None:
        if not arguments.picture.absolute().parent.is_dir():
            raise InputError(f"there is no folder {arguments.picture.absolute().parent} to draw into")
        save_layer_picture(layers, arguments.picture, arguments.file.name)
    if arguments.html is not None:
        _check_place(arguments.html)
        report = coupled_report(*_full_model_of(stored, arguments), arguments.file.name)
        write_atomically(arguments.html, coupled_page(report, layers).encode())
    if arguments.json:
        json.dump(document(stored, layers, costs), sys.stdout)
        sys.stdout.write("\n")
        return 0
    console = Console(highlight=False)
    console.print(shown([dataclasses.replace(layer, name=_plain(layer.name)) for layer in layers], costs))
    for name, value in {
        **stored.metadata,
        "written by": ", ".join(f"{k} {v}" for k, v in stored.libraries.items()),
    }.items():
        if not isinstance(value, dict):
            shown_value = ", ".join(map(str, value)) or "none" if isinstance(value, list) else value
            console.print(printable(f"{name}: {shown_value}"), soft_wrap=True, markup=False)
    _say_written(console, arguments)
    return 0


def _plain(name: str) -> str:
    """A name from a file as a table may hold it: no escape code for the terminal, and no markup."""
    return escape(printable(name))


def _show_run(arguments: argparse.Namespace) -> int:
    """Show what a run's folder holds; returns 0."""
    for option in ("model", "image_size", "picture"):
        if getattr(arguments, option) is not None:
            raise InputError(f"--{option.replace('_', '-')} is for files of pruned models; {arguments.file} is a run")
    folder = arguments.file if arguments.file.is_dir() else arguments.file.parent
    found = run_overview(folder)
    if arguments.html is not None:
        _check_place(arguments.html)
        write_atomically(arguments.html, run_page(folder).encode())
    if arguments.json:
        json.dump(found, sys.stdout)
        sys.stdout.write("\n")
        return 0
    console = Console(highlight=False)
    for line in run_lines(found):
        console.print(printable(line), soft_wrap=True, markup=False)
    _say_written(console, arguments)
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
        json.dump({**report.as_dict(), "libraries": dict(record.libraries)}, sys.stdout)
        sys.stdout.write("\n")
        return 0
    console = Console(highlight=False)
    console.print(printable(repr(report)), soft_wrap=True, markup=False)
    versions = ", ".join(f"{name} {version}" for name, version in record.libraries.items())
    console.print(printable(f"written by: {versions}"), soft_wrap=True, markup=False)
    return 0


def _check_place(page: Path) -> None:
    if not page.absolute().parent.is_dir():
        raise InputError(f"there is no folder {page.absolute().parent} to write the page into")


def _say_written(console: Console, arguments: argparse.Namespace) -> None:
    if arguments.html is not None:
        console.print(f"written to {arguments.html}", soft_wrap=True, markup=False)


def _show_coupled(arguments: argparse.Namespace) -> int:
    """Show what is coupled in a full model; returns 0."""
    for option in ("model", "picture"):
        if getattr(arguments, option) is not None:
            raise InputError(f"--{option} is for files of pruned models; {arguments.file} is a full model")
    if arguments.html is not None:
        _check_place(arguments.html)
    name = str(arguments.file)
    full = full_model(name, image_size=arguments.image_size)
    report = coupled_report(full.model.eval(), _example_inputs(full, arguments), name, arguments.part)
    if arguments.html is not None:
        write_atomically(arguments.html, coupled_page(report).encode())
    if arguments.json:
        json.dump(report.as_dict(), sys.stdout)
        sys.stdout.write("\n")
        return 0
    console = Console(highlight=False)
    console.print(report.shown())
    _say_written(console, arguments)
    return 0


def _example_inputs(full: FullModel, arguments: argparse.Namespace) -> Any:
    """What the model is called with: given, its own example, or two images."""
    if arguments.inputs is not None:
        found = imported(arguments.inputs)
        if not callable(found):
            raise InputError(f"--inputs {arguments.inputs} gave a {type(found).__name__}; expected a callable")
        return found()
    own = getattr(full.model, "dummy_inputs", None)  # models of transformers have it
    if isinstance(own, dict) and all(isinstance(value, torch.Tensor) for value in own.values()):
        cached = hasattr(getattr(full.model, "config", None), "use_cache")
        return {**own, "use_cache": False} if cached else own  # a cache that is returned would be an output, and stay
    with torch.random.fork_rng():
        return torch.randn(2, *full.shape)


def run_lines(found: dict[str, Any]) -> list[str]:
    """A run's overview (`hfp.results.overview`) as lines of text."""
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


def _is_pair(value: Any) -> bool:
    """Whether a value of the file's metadata is two times in seconds."""
    return isinstance(value, list) and len(value) == 2 and all(isinstance(v, float) and 0 < v < 1e6 for v in value)


def document(
    stored: PrunedFile, layers: tuple[LayerReport, ...], costs: dict[str, tuple[float, float]]
) -> dict[str, Any]:
    """The JSON document of ``hfp inspect --json``."""
    return {
        "file": str(stored.path),
        "model": None if stored.timm is None else stored.timm.name,
        "metadata": dict(stored.metadata),
        "libraries": dict(stored.libraries),
        "costs": costs,
        "layers": [asdict(layer) for layer in layers],
        "attributes": {name: dict(changed) for name, changed in stored.index_map.attributes.items()},
    }


def _described(
    stored: PrunedFile, arguments: argparse.Namespace
) -> tuple[tuple[LayerReport, ...], dict[str, tuple[float, float]]]:
    """Layers and costs: with the full model by its layers, else by the tensors of the file alone."""
    size = arguments.image_size or _size_in(stored)
    skeleton: nn.Module
    of_run = description_in(stored)
    if of_run is not None and (named := skeleton_in(stored)) is not None:
        skeleton = named.to("meta")
    elif stored.timm is not None:
        skeleton, _ = stored.timm.outline(stored.path.stat().st_size)
        shape = _usual_shape(skeleton, stored.timm, size)
    elif arguments.model is not None:
        found = full_model(arguments.model, image_size=size)
        skeleton, shape = found.model.to("meta"), found.shape
    else:
        index_map = stored.index_map
        return tensor_reports(index_map), {"entries": (index_map.full_entries, index_map.kept_entries)}
    if of_run is not None:
        shape = of_run.input.shape
    stored.index_map.check_full(skeleton.state_dict())
    return layer_reports(skeleton, stored.index_map), _costs(skeleton, stored.index_map, shape)


def _full_model_of(stored: PrunedFile, arguments: argparse.Namespace) -> tuple[nn.Module, torch.Tensor]:
    """The full model of a file with random weights, and two images for it.

    Raises:
        InputError: the file does not name the model, and --model was not given.
    """
    size, of_run = arguments.image_size or _size_in(stored), description_in(stored)
    if of_run is not None and (named := skeleton_in(stored)) is not None:
        return named.eval(), torch.randn(2, *of_run.input.shape)
    if stored.timm is not None:
        model = timm.create_model(stored.timm.name, **stored.timm.arguments)
        return model.eval(), torch.randn(2, *_usual_shape(model, stored.timm, size))
    if arguments.model is None:
        raise InputError(f"{arguments.file} does not name its full model; give --model, whose groups the page shows")
    found = full_model(arguments.model, image_size=size)
    return found.model.eval(), torch.randn(2, *found.shape)


def _usual_shape(model: nn.Module, named: TimmModel, size: int | None) -> tuple[int, ...]:
    """The shape of an image for one of timm's models, with sides of `size` pixels where that is given."""
    channels, *sides = getattr(model, "pretrained_cfg", {}).get("input_size", (3, 224, 224))
    return (named.arguments.get("in_chans", channels), *([size] * 2 if size else sides))


def _size_in(stored: PrunedFile) -> int | None:
    """The side of the images that the file's writer counted with; None where the file does not say."""
    shape = stored.metadata.get("input")
    if not isinstance(shape, list) or len(shape) != 3:
        return None
    return shape[-1] if all(type(side) is int and 0 < side < 1e5 for side in shape) else None


def _costs(skeleton: nn.Module, index_map: IndexMap, shape: tuple[int, ...]) -> dict[str, tuple[float, float]]:
    compact = compact_model(skeleton, index_map)
    inputs = torch.empty(1, *shape, device="meta")
    return {
        "macs": (macs(skeleton, inputs), macs(compact, inputs)),
        "params": (parameters(skeleton), parameters(compact)),
        "bytes": (state_bytes(skeleton), state_bytes(compact)),
    }
