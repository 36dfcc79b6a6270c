"""``hfp prune``: one model, one budget, one file."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from hfp import importance
from hfp.costs.macs import latencies
from hfp.data import Dataset, datasets, load_dataset
from hfp.errors import InputError
from hfp.models.source import FullModel, full_model
from hfp.pruning.budget import Budget
from hfp.pruning.export import check_exporter, export_onnx
from hfp.pruning.finetuning import accuracy, finetune, training_batches
from hfp.pruning.layer_picture import save_layer_picture
from hfp.pruning.prune import PruneResult, prune
from hfp.pruning.repair import KINDS
from hfp.pruning.schedule import RANKINGS
from hfp.pruning.storing import save_pruned

_BUDGETS = {
    "macs": "share of the multiply-accumulates that remains",
    "params": "share of the parameters that remains",
    "bytes": "share of the file's bytes that remains",
    "latency": "share of the time of a forward pass that remains, measured on this machine",
    "ratio": "share of the channels of every coupled group that is removed",
}


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``hfp prune``."""
    parser.add_argument("model", metavar="MODEL", help="a model's name (ours, timm's, torchvision's) or module:factory")
    budget = parser.add_mutually_exclusive_group(required=True)
    for name, text in _BUDGETS.items():
        budget.add_argument(f"--{name}", type=float, metavar="SHARE", help=text)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the pruned model, as safetensors")
    _configure_model(parser.add_argument_group("model"))
    _configure_ranking(parser.add_argument_group("what goes"))
    data = parser.add_argument_group(
        "data",
        "Recommended with data (examples/benchmarks/criteria.md): --importance kronecker --ranking measured "
        "--repair least-squares --repair batch-norm",
    )
    data.add_argument("--data", metavar="NAME", help=f"score and repair with one of {', '.join(datasets())}")
    data.add_argument("--data-root", type=Path, metavar="PATH", help="where its files are")
    data.add_argument(
        "--repair",
        action="append",
        default=[],
        choices=KINDS,
        help="repair by one pass over the batches; may be given several times, done in that order",
    )
    data.add_argument("--finetune", type=int, default=0, metavar="EPOCHS", help="train the pruned model on")
    data.add_argument("--learning-rate", type=float, default=0.01, metavar="LR", help="of the training (default: 0.01)")
    data.add_argument("--batch-size", type=int, default=64, metavar="N", help="default: 64")
    data.add_argument("--batches", type=int, default=16, metavar="N", help="to score and repair with (default: 16)")
    parser.add_argument("--export", choices=("onnx",), help="also write FILE.onnx, and check it with ONNX Runtime")
    parser.add_argument("--picture", type=Path, metavar="PNG", help="draw what is left of every layer")
    parser.add_argument("--json", action="store_true", help="print the report as JSON; progress goes to standard error")


def _configure_model(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--num-classes", type=int, metavar="N", help="default: the data's, else the model's usual ones")
    group.add_argument("--in-channels", type=int, default=3, metavar="N", help="default: 3")
    group.add_argument("--image-size", type=int, metavar="PIXELS", help="default: the model's usual size")
    group.add_argument("--pretrained", action="store_true", help="load timm's weights (a download)")
    group.add_argument("--weights", type=Path, metavar="FILE", help="the full model's state, as safetensors")
    group.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, mps ... (default: cpu)")


def _configure_ranking(group: argparse._ArgumentGroup) -> None:
    names = ", ".join(name for name in importance.names() if importance.describe(name).needs != "variation")
    group.add_argument("--importance", default="l2", metavar="NAME", help=f"one of {names} (default: l2)")
    group.add_argument("--ranking", choices=RANKINGS, default="layer", help="default: layer; measured needs data")
    group.add_argument("--round-to", type=int, metavar="N", help="leave a multiple of N channels in every pruned layer")
    group.add_argument("--min-channels", type=int, default=1, metavar="N", help="what every layer keeps (default: 1)")
    group.add_argument(
        "--ignore", action="append", default=[], metavar="LAYER", help="leave this layer's outputs alone"
    )
    group.add_argument("--keep-heads", action="store_true", help="prune inside attention heads, not whole heads")
    group.add_argument("--steps", type=int, default=1, metavar="N", help="go in N steps, scoring again before each")


def run(arguments: argparse.Namespace) -> int:
    """Prune, repair, save, export; returns 0."""
    console = Console(stderr=arguments.json, highlight=False)
    budget = Budget(**{name: getattr(arguments, name) for name in _BUDGETS})
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
