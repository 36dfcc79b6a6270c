"""``hfp inspect FILE``: what the file of a pruned model holds, as a table, a picture or a page."""

from __future__ import annotations

import argparse
import dataclasses
from dataclasses import asdict
from typing import Any

import timm
import torch
from rich.console import Console
from rich.markup import escape
from torch import nn

from hfp.atomic import write_atomically
from hfp.commands.arguments.targets import LARGEST_SIDE
from hfp.commands.printing import print_json
from hfp.costs.macs import macs, parameters, state_bytes
from hfp.errors import InputError, printable
from hfp.models.exits import only_what_runs
from hfp.models.source import full_model, images_of
from hfp.pruning.coupled import coupled_report
from hfp.pruning.coupled_page import coupled_page
from hfp.pruning.layer_picture import save_layer_picture
from hfp.pruning.layers_report import LayerReport, layer_reports, tensor_reports
from hfp.pruning.tables import shown
from hfp.reconstruct import PrunedFile, TimmModel, compact_model, read_pruned
from hfp.results.load import description_in, skeleton_in

Costs = dict[str, tuple[float, float]]
"""The name of a cost -> its value before and after."""


def show_pruned_file(arguments: argparse.Namespace) -> int:
    """Show what a pruned model's file holds, and draw what is asked for; returns 0."""
    stored = read_pruned(arguments.file)
    layers, costs = _described(stored, arguments)
    if arguments.picture is not None:
        save_layer_picture(layers, arguments.picture, arguments.file.name)
    if arguments.html is not None:
        _write_page(stored, layers, arguments)
    if arguments.json:
        print_json(_document(stored, layers, costs))
        return 0
    console = Console(highlight=False)
    console.print(shown([dataclasses.replace(layer, name=_plain(layer.name)) for layer in layers], costs))
    libraries = ", ".join(f"{name} {version}" for name, version in stored.libraries.items())
    for name, value in {**stored.metadata, "written by": libraries}.items():
        if not isinstance(value, dict):
            shown_value = ", ".join(map(str, value)) or "none" if isinstance(value, list) else value
            console.print(printable(f"{name}: {shown_value}"), soft_wrap=True, markup=False)
    say_written(console, arguments)
    return 0


def say_written(console: Console, arguments: argparse.Namespace) -> None:
    """Tell where the page is, if one was asked for."""
    if arguments.html is not None:
        console.print(f"written to {arguments.html}", soft_wrap=True, markup=False)


def _write_page(stored: PrunedFile, layers: tuple[LayerReport, ...], arguments: argparse.Namespace) -> None:
    found = _full_model(stored, arguments, weights=True)
    if found is None:
        raise InputError(f"{arguments.file} does not name its full model; give --model, whose groups the page shows")
    model, shape = found
    report = coupled_report(model.eval(), images_of(shape), arguments.file.name)
    write_atomically(arguments.html, coupled_page(report, layers).encode())


def _document(stored: PrunedFile, layers: tuple[LayerReport, ...], costs: Costs) -> dict[str, Any]:
    return {
        "file": str(stored.path),
        "model": None if stored.timm is None else stored.timm.name,
        "metadata": dict(stored.metadata),
        "libraries": dict(stored.libraries),
        "costs": costs,
        "layers": [asdict(layer) for layer in layers],
        "attributes": {name: dict(changed) for name, changed in stored.index_map.attributes.items()},
    }


def _described(stored: PrunedFile, arguments: argparse.Namespace) -> tuple[tuple[LayerReport, ...], Costs]:
    """Describe layers and costs: with the full model by its layers, else by the tensors of the file alone."""
    found, index_map = _full_model(stored, arguments, weights=False), stored.index_map
    if found is None:
        if arguments.image_size is not None:
            raise InputError(f"--image-size counts with the full model, which {arguments.file} does not name: --model")
        layers = tensor_reports(index_map)
        costs: Costs = {"entries": (index_map.full_entries, index_map.kept_entries)}
    else:
        skeleton, shape = found
        index_map.check_full(skeleton.state_dict())
        compact = only_what_runs(compact_model(skeleton, index_map))
        layers = tuple(_present(layer, compact) for layer in layer_reports(skeleton, index_map))
        costs = _costs(skeleton, compact, shape)
    measured = stored.metadata.get("costs", {})
    if isinstance(measured, dict) and _is_pair(measured.get("latency")):
        before, after = measured["latency"]  # when it was pruned: the full model can't be timed without weights
        costs["latency"] = (before, after)
    if "bytes" in costs:  # which take the full model
        costs["file bytes"] = (costs["bytes"][0], stored.path.stat().st_size)
    return layers, costs


def _full_model(
    stored: PrunedFile, arguments: argparse.Namespace, *, weights: bool
) -> tuple[nn.Module, tuple[int, ...]] | None:
    """Return the full model of a file and the shape of an image for it; None where nothing names it.

    The model has random weights, or is on the meta device where it needs none.

    Raises:
        InputError: an option says what the file says itself.
    """
    channels, own_size = _images_in(stored)
    size, of_run, named = arguments.image_size or own_size, description_in(stored), skeleton_in(stored)
    if arguments.model is not None and (named is not None or stored.timm is not None):
        raise InputError(f"{arguments.file} names its full model; leave --model out")
    if arguments.image_size is not None and of_run is not None:
        raise InputError(f"{arguments.file} says what images its model takes; leave --image-size out")
    model: nn.Module
    if of_run is not None and named is not None:
        model, shape = named, of_run.input.shape
    elif stored.timm is not None:
        named_timm = stored.timm
        if weights:
            model = timm.create_model(named_timm.name, **named_timm.arguments)
        else:
            model, _ = named_timm.outline(stored.path.stat().st_size)
        shape = _usual_shape(model, named_timm, size)
    elif arguments.model is not None:
        classes = _whole(stored.metadata.get("num_classes"))
        given = full_model(arguments.model, num_classes=classes, in_channels=channels or 3, image_size=size)
        model, shape = given.model, given.shape if of_run is None else of_run.input.shape
    else:
        return None
    return (model if weights else model.to("meta")), shape


def _plain(name: str) -> str:
    """Return a name from a file as a table may hold it: without escape codes for the terminal, and without markup."""
    return escape(printable(name))


def _is_pair(value: Any) -> bool:
    """Whether a value of the file's metadata is two times in seconds."""
    return isinstance(value, list) and len(value) == 2 and all(isinstance(v, float) and 0 < v < 1e6 for v in value)


def _usual_shape(model: nn.Module, named: TimmModel, size: int | None) -> tuple[int, ...]:
    """Return the shape of an image for one of timm's models, with sides of `size` pixels where that is given."""
    channels, *sides = getattr(model, "pretrained_cfg", {}).get("input_size", (3, 224, 224))
    return (named.arguments.get("in_chans", channels), *([size] * 2 if size else sides))


def _images_in(stored: PrunedFile) -> tuple[int | None, int | None]:
    """Return channels and side of the images that the file's writer counted with; None where the file does not say."""
    shape = stored.metadata.get("input")
    if not isinstance(shape, list) or len(shape) != 3 or None in map(_whole, shape):
        return None, None
    return shape[0], shape[-1]


def _whole(value: Any) -> int | None:
    """Return a number of channels, pixels or classes from a file; None where it is none that can be believed."""
    return value if type(value) is int and 0 < value <= LARGEST_SIDE else None


def _present(layer: LayerReport, compact: nn.Module) -> LayerReport:
    """Return a layer with nothing left where the compact model has no values of it, because no exit runs behind it."""
    module = compact if layer.name == "(model)" else compact.get_submodule(layer.name)
    if any(parameter.numel() for parameter in module.parameters()) or not layer.parameters[0]:
        return layer
    inputs = None if layer.inputs is None else (layer.inputs[0], 0)
    return dataclasses.replace(layer, after=0, inputs=inputs, parameters=(layer.parameters[0], 0), reason=None)


def _costs(skeleton: nn.Module, compact: nn.Module, shape: tuple[int, ...]) -> Costs:
    inputs = torch.empty(1, *shape, device="meta")
    return {
        "macs": (macs(skeleton, inputs), macs(compact, inputs)),
        "params": (parameters(skeleton), parameters(compact)),
        "bytes": (state_bytes(skeleton), state_bytes(compact)),
    }
