"""``hfp prune``: one model, one budget, one file."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from hfp import importance
from hfp.commands.arguments.prune import BUDGETS
from hfp.costs.macs import latencies
from hfp.data import Dataset, load_dataset
from hfp.errors import InputError
from hfp.models.source import FullModel, full_model
from hfp.pruning.budget import Budget
from hfp.pruning.export import check_exporter, export_onnx
from hfp.pruning.finetuning import accuracy, finetune, training_batches
from hfp.pruning.layer_picture import save_layer_picture
from hfp.pruning.prune import PruneResult, prune
from hfp.pruning.storing import save_pruned


def run(arguments: argparse.Namespace) -> int:
    """Prune, repair, save, export; returns 0."""
    console = Console(stderr=arguments.json, highlight=False)
    budget = Budget(**{name: getattr(arguments, name) for name in BUDGETS})
    _check_files(arguments)
    dataset = _dataset(arguments)
    full = _full_model(arguments, dataset)
    device = _device(arguments.device)
    full.model.to(device)
    inputs = torch.randn(2, *full.shape, generator=torch.Generator().manual_seed(0)).to(device)
    with console.status(f"pruning {arguments.model} to {budget}") as status:
        result = _prune(arguments, budget, full, dataset, inputs, status.update)
        status.update("measuring latency")
        result = _with_usual_costs(result, full.model, inputs)
    accuracies = {} if dataset is None else _repair(arguments, full.model, result.model, dataset, console)
    result.model.to("cpu")
    save_pruned(result, arguments.out, full.timm, input_shape=full.shape)
    result = _with_costs(result, {"file bytes": (result.report.costs["bytes"][0], arguments.out.stat().st_size)})
    document: dict[str, Any] = {"model": arguments.model, "out": str(arguments.out), **result.report.as_dict()}
    document |= {**accuracies, "file_bytes": arguments.out.stat().st_size}
    if arguments.export:
        path = arguments.out.with_suffix(".onnx")
        document["onnx"] = {"path": str(path), "largest_difference": export_onnx(result.model, inputs.cpu(), path)}
    if arguments.picture is not None:
        save_layer_picture(result.report.layers, arguments.picture, f"{arguments.model}, {budget}")
    _show(document, result, arguments, console)
    return 0


def _with_usual_costs(result: PruneResult, full: nn.Module, inputs: Tensor) -> PruneResult:
    """The result with multiply-accumulates counted for one image, and with the latency of both models."""
    before, after = result.report.costs["macs"]
    found: dict[str, tuple[float, float]] = {"macs": (before // len(inputs), after // len(inputs))}
    if "latency" not in result.report.costs:
        slow, fast = latencies((full, result.model), inputs)
        found["latency"] = (slow, fast)
    return _with_costs(result, found)


def _with_costs(result: PruneResult, costs: dict[str, tuple[float, float]]) -> PruneResult:
    return replace(result, report=replace(result.report, costs={**result.report.costs, **costs}))


def _check_files(arguments: argparse.Namespace) -> None:
    for path in (arguments.out, arguments.picture):
        if path is not None and not path.absolute().parent.is_dir():
            raise InputError(f"there is no folder {path.absolute().parent} to write {path.name} to")
        if path is not None and path.is_dir():
            raise InputError(f"{path} is a folder; give the name of a file")
    for option in ("image_size", "num_classes", "in_channels"):
        value = getattr(arguments, option)
        if value is not None and value < 1:
            raise InputError(f"--{option.replace('_', '-')} is at least 1, not {value}")
    if arguments.export:
        check_exporter()
    for option in ("finetune", "repair"):
        if arguments.data is None and getattr(arguments, option):
            raise InputError(f"--{option} needs images: --data NAME")
    if arguments.finetune < 0 or arguments.batch_size < 2 or arguments.batches < 1:
        raise InputError("--finetune is 0 or more epochs, --batch-size 2 or more, --batches 1 or more")


def _dataset(arguments: argparse.Namespace) -> Dataset | None:
    if arguments.data is None:
        return None
    size = arguments.image_size if arguments.data == "imagefolder" else None
    return load_dataset(arguments.data, arguments.data_root, image_size=size)


def _full_model(arguments: argparse.Namespace, dataset: Dataset | None) -> FullModel:
    classes, channels, size = arguments.num_classes, arguments.in_channels, arguments.image_size
    if dataset is not None:
        classes, channels, size = classes or len(dataset.classes), dataset.shape[0], dataset.shape[1]
    return full_model(
        arguments.model,
        num_classes=classes,
        in_channels=channels,
        image_size=size,
        pretrained=arguments.pretrained,
        weights=arguments.weights,
    )


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"no device {name!r} here: {str(error).splitlines()[0]}") from error
    return device


def _prune(
    arguments: argparse.Namespace,
    budget: Budget,
    full: FullModel,
    dataset: Dataset | None,
    inputs: Tensor,
    progress: Callable[[str], None],
) -> PruneResult:
    batches = None
    scores = importance.describe(arguments.importance).needs == "data"
    if dataset is None and scores:
        raise InputError(f"criterion {arguments.importance!r} scores with images: --data NAME")
    measures = arguments.ranking == "measured"
    if dataset is None and measures:
        raise InputError("--ranking measured measures losses on images: --data NAME")
    if dataset is not None and (scores or measures or arguments.repair):
        batches = training_batches(dataset, arguments.batch_size, arguments.batches, inputs.device)
    return prune(
        full.model,
        inputs,
        budget,
        importance=arguments.importance,
        data=batches,
        loss_fn=cross_entropy,
        ranking=arguments.ranking,
        round_to=arguments.round_to,
        min_channels=arguments.min_channels,
        ignored_layers=arguments.ignore,
        prune_heads=not arguments.keep_heads,
        steps=arguments.steps,
        repair=arguments.repair,
        progress=lambda stage: progress(f"pruning {arguments.model} to {budget}: {stage}"),
    )


def _repair(
    arguments: argparse.Namespace, full: nn.Module, compact: nn.Module, dataset: Dataset, console: Console
) -> dict[str, Any]:
    found = {"accuracy": {"full": accuracy(full, dataset), "pruned": accuracy(compact, dataset)}}
    if arguments.finetune:
        with Progress(console=console, transient=True) as progress:
            task = progress.add_task("repairing", total=None)

            def show(step: int, steps: int, loss: float) -> None:
                progress.update(task, completed=step, total=steps, description=f"repairing, loss {loss:.3f}")

            finetune(
                compact,
                dataset,
                arguments.finetune,
                learning_rate=arguments.learning_rate,
                batch_size=arguments.batch_size,
                progress=show,
            )
        found["accuracy"]["repaired"] = accuracy(compact, dataset)
    return found


def _show(document: dict[str, Any], result: PruneResult, arguments: argparse.Namespace, console: Console) -> None:
    if arguments.json:
        json.dump(document, sys.stdout)
        sys.stdout.write("\n")
        return
    console.print(result.report.shown())
    for name, value in document.get("accuracy", {}).items():
        console.print(f"accuracy, {name}: {value:.1%}")
    if "onnx" in document:
        console.print(
            f"{document['onnx']['path']} differs by {document['onnx']['largest_difference']:.2g} at most",
            soft_wrap=True,
        )
    console.print(f"written to {arguments.out} ({document['file_bytes']:,} bytes)", soft_wrap=True)
