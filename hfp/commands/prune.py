"""``hfp prune``: load, prune, train on, write, and say what was done."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor
from torch.nn.functional import cross_entropy

from hfp import importance
from hfp.atomic import free_name
from hfp.commands import prune_folder
from hfp.commands.arguments.prune_checks import check_classes, check_images, checked_budget, onnx_path
from hfp.commands.printing import print_json
from hfp.costs.macs import latencies, parameters, state_bytes
from hfp.data import Dataset, load_dataset
from hfp.devices import working_device
from hfp.errors import InputError, file_errors
from hfp.language.choices import PREFIX
from hfp.models.source import FullModel, full_model, images_of
from hfp.pruning.budget import Budget
from hfp.pruning.export import check_exporter, export_onnx
from hfp.pruning.finetuning import accuracy, finetune, training_batches
from hfp.pruning.layer_picture import save_layer_picture
from hfp.pruning.progress import Tell, told
from hfp.pruning.prune import prune
from hfp.pruning.repair.kinds import AUTO, USUAL
from hfp.pruning.result import PruneResult
from hfp.reconstruct import save_pruned

_BATCH_SIZE, _BATCHES, _LEARNING_RATE = 64, 16, 0.01


@dataclass(frozen=True)
class _Job:
    """What a command prunes, and with what. `weights` says where they come from."""

    arguments: argparse.Namespace
    budget: Budget
    dataset: Dataset | None
    full: FullModel
    inputs: Tensor
    weights: str


def run(arguments: argparse.Namespace) -> int:
    """Do all of it; returns the exit status: 0, or 1 where a limit is not met."""
    if arguments.model.startswith(PREFIX):
        return prune_folder.run(arguments)
    console = Console(stderr=arguments.json, highlight=False)
    job = _prepared(arguments)
    for line in _assumptions(job):
        console.print(line, soft_wrap=True, markup=False)
    with told(True) as tell:
        result = _with_usual_costs(_prune(job, tell), job, tell)
        accuracies = _accuracies(job, result, tell)
        result.model.to("cpu")
        document = _write(job, result, accuracies)
    result = _with_costs(result, {"file bytes": (state_bytes(job.full.model), document["file_bytes"])})
    document |= result.report.as_dict()
    _show(document, result, arguments, console)
    if not result.report.met:
        print(f"hfp prune: {_missed(result)}; {document['out']} is written all the same", file=sys.stderr)
    return 0 if result.report.met else 1


def _prepared(arguments: argparse.Namespace) -> _Job:
    """Load what the command needs.

    Raises:
        InputError: something can't be used, or is not there.
    """
    budget = checked_budget(arguments)
    if arguments.export:
        check_exporter()
    device = working_device(arguments.device)
    dataset = _dataset(arguments)
    full = _full_model(arguments, dataset)
    _check_trains(arguments, full)
    full.model.to(device)
    return _Job(arguments, budget, dataset, full, images_of(full.shape).to(device), _origin(arguments, full))


def _check_trains(arguments: argparse.Namespace, full: FullModel) -> None:
    if arguments.finetune and not any(parameter.requires_grad for parameter in full.model.parameters()):
        raise InputError(
            f"no parameter of {arguments.model} requires gradients, so that --finetune would train nothing; call its "
            "requires_grad_()"
        )


def _dataset(arguments: argparse.Namespace) -> Dataset | None:
    if arguments.data is None:
        return None
    size = arguments.image_size if arguments.data == "imagefolder" else None
    dataset = load_dataset(arguments.data, arguments.data_root, image_size=size)
    check_images(arguments, dataset.name, dataset.shape[0], dataset.shape[1])
    check_classes(arguments, dataset.name, len(dataset.classes))
    return dataset


def _full_model(arguments: argparse.Namespace, dataset: Dataset | None) -> FullModel:
    channels, size = arguments.in_channels or 3, arguments.image_size
    if dataset is not None:
        channels, size = dataset.shape[0], dataset.shape[1]
    return full_model(
        arguments.model,
        num_classes=_classes(arguments, dataset),
        in_channels=channels,
        image_size=size,
        pretrained=arguments.pretrained,
        weights=arguments.weights,
    )


def _classes(arguments: argparse.Namespace, dataset: Dataset | None) -> int | None:
    """Return how many logits the model has; None leaves that to the model."""
    return arguments.num_classes or (None if dataset is None else len(dataset.classes))


def _origin(arguments: argparse.Namespace, full: FullModel) -> str:
    """Say where the weights come from."""
    if arguments.weights is not None:
        return f"from {arguments.weights}"
    if arguments.pretrained:
        config = getattr(full.model, "pretrained_cfg", {})
        usual, asked = config.get("num_classes"), full.timm.arguments.get("num_classes") if full.timm else None
        head = "" if asked in (None, usual) else f", but for the head of {asked} classes, which is random"
        return f"pretrained by timm ({config.get('tag') or 'default'}){head}"
    if full.timm is None and ":" in arguments.model and not arguments.model.startswith("torchvision:"):
        return f"as {arguments.model} makes them"
    return "RANDOM, nothing in this model is trained; prune a trained one with --pretrained or --weights FILE"


def _assumptions(job: _Job) -> Iterator[str]:
    """Say what is pruned and on what, a line each."""
    channels, height, width = job.full.shape
    yield (
        f"model:   {job.arguments.model}, {parameters(job.full.model):,} parameters, "
        f"images of {channels} x {height} x {width}"
    )
    yield f"weights: {job.weights}"
    if job.dataset is None:
        yield "data:    none; accuracy is not measured"
    else:
        found = job.dataset
        yield (
            f"data:    {found.name}, {len(found.train):,} training and {len(found.test):,} test images "
            f"of {len(found.classes)} classes"
        )
    count = torch.get_num_threads()
    threads = f", {count} thread{'s' * (count > 1)}" if job.inputs.device.type == "cpu" else ""
    yield f"device:  {job.inputs.device}{threads}"
    yield f"repair:  {_repair_words(job)}"


def _repair_words(job: _Job) -> str:
    """Say which repairs will be done, and what switches them off or on."""
    arguments = job.arguments
    if arguments.no_repair:
        return "none, as --no-repair says"
    if job.dataset is None:
        return "none, for want of data; --data NAME gives some"
    size, most = arguments.batch_size or _BATCH_SIZE, arguments.batches or _BATCHES
    count = min(size * most, len(job.dataset.train))
    kinds = " and ".join(arguments.repair or USUAL)
    return f"{kinds}, from {count:,} training images; --no-repair goes without"


def _prune(job: _Job, tell: Tell) -> PruneResult:
    arguments = job.arguments
    repair = None if arguments.no_repair else arguments.repair or AUTO
    scores = importance.describe(arguments.importance).needs == "data" or arguments.ranking == "measured"
    batches = None
    if job.dataset is not None and (scores or repair):
        size, most = arguments.batch_size or _BATCH_SIZE, arguments.batches or _BATCHES
        batches = training_batches(job.dataset, size, most, job.inputs.device)
    return prune(
        job.full.model,
        job.inputs,
        job.budget,
        importance=arguments.importance,
        data=batches,
        loss_fn=cross_entropy,
        ranking=arguments.ranking,
        round_to=arguments.round_to,
        min_channels=arguments.min_channels,
        ignored_layers=arguments.ignore,
        prune_heads=not arguments.keep_heads,
        steps=arguments.steps,
        repair=repair,
        part=arguments.part,
        progress=lambda stage: tell(f"pruning {arguments.model} to {job.budget}: {stage}"),
    )


def _with_usual_costs(result: PruneResult, job: _Job, tell: Tell) -> PruneResult:
    """Count multiply-accumulates for one image, and measure the latency of both models."""
    before, after = result.report.costs["macs"]
    found: dict[str, tuple[float, float]] = {"macs": (before // len(job.inputs), after // len(job.inputs))}
    if "latency" not in result.report.costs and result.report.part is None:
        tell("measuring latency")
        slow, fast = latencies((job.full.model, result.model), job.inputs)
        found["latency"] = (slow, fast)
    return _with_costs(result, found)


def _with_costs(result: PruneResult, costs: dict[str, tuple[float, float]]) -> PruneResult:
    return replace(result, report=replace(result.report, costs={**result.report.costs, **costs}))


def _accuracies(job: _Job, result: PruneResult, tell: Tell) -> dict[str, float]:
    """Measure the accuracy of the full, the pruned and, where that is asked for, the fine-tuned model."""
    if job.dataset is None:
        return {}
    tell("measuring accuracy")
    found = {"full": accuracy(job.full.model, job.dataset), "pruned": accuracy(result.model, job.dataset)}
    arguments = job.arguments
    if arguments.finetune:
        finetune(
            result.model,
            job.dataset,
            arguments.finetune,
            learning_rate=arguments.learning_rate or _LEARNING_RATE,
            batch_size=arguments.batch_size or _BATCH_SIZE,
            augmented=arguments.augment,
            progress=lambda step, steps, loss: tell(f"fine-tuning, step {step} of {steps}, loss {loss:.3f}"),
        )
        found["fine-tuned"] = accuracy(result.model, job.dataset)
    return found


def _write(job: _Job, result: PruneResult, accuracies: dict[str, float]) -> dict[str, Any]:
    """Write all files; returns what is known of them, for the report."""
    arguments = job.arguments
    out = _free(arguments.out, arguments.force, onnx_path(arguments.out).suffix)
    exported = onnx_path(out)
    classes = _classes(arguments, job.dataset)
    added = {
        "input": list(job.full.shape),
        **({"num_classes": classes} if classes else {}),
        "weights": job.weights,
        **({"fine-tuned epochs": arguments.finetune} if arguments.finetune else {}),
    }
    document: dict[str, Any] = {"model": arguments.model, "weights": job.weights, "out": str(out)}
    if arguments.export:  # first, since nothing is written where a model can't be exported
        with file_errors(f"{exported} can't be written"):
            difference = export_onnx(result.model, job.inputs.cpu(), exported)
        document["onnx"] = {"path": str(exported), "largest_difference": difference}
    with file_errors(f"{out} can't be written"):
        save_pruned(result, out, timm=job.full.timm, metadata=added)
    if not arguments.export:
        with file_errors(f"{exported} can't be removed"):
            exported.unlink(missing_ok=True)  # of an earlier model
    document["file_bytes"] = out.stat().st_size
    if accuracies:
        document["accuracy"] = accuracies
    if arguments.picture is not None:
        picture = _free(arguments.picture, arguments.force)
        with file_errors(f"{picture} can't be written"):
            save_layer_picture(result.report.layers, picture, f"{arguments.model}, {job.budget}")
    return document


def _free(path: Path, force: bool, *endings: str) -> Path:
    """Return the file to write, which has another name where another program wrote one since the command began.

    Args:
        path: the file that was asked for.
        force: whether one that is there is replaced.
        endings: other endings under which files of the same name are written or removed.
    """
    there = [place for place in (path, *map(path.with_suffix, endings)) if place.exists()]
    if force or not there:
        return path
    free = free_name(path, *endings)
    said = f"{there[0]} was written by another program meanwhile, and stays; this is {free}"
    print(f"hfp prune: {said}", file=sys.stderr)
    return free


def _missed(result: PruneResult) -> str:
    """Say which limits are not met."""
    report = result.report
    return "; ".join(
        f"the limit on {name} is NOT met: {report.costs[name][1] / report.costs[name][0]:.1%} is left, "
        f"{distance * -100:.1f} points too much"
        for name, distance in report.distance.items()
        if distance < 0
    )


def _show(document: dict[str, Any], result: PruneResult, arguments: argparse.Namespace, console: Console) -> None:
    say: Callable[[str], None] = lambda line: console.print(line, soft_wrap=True, markup=False)  # noqa: E731
    if arguments.json:
        print_json(document)
    else:
        console.print(result.report.shown())
        for name, value in document.get("accuracy", {}).items():
            say(f"accuracy, {name}: {value:.1%}")
        if "onnx" in document:
            say(f"{document['onnx']['path']} differs by {document['onnx']['largest_difference']:.2g} at most")
        say(f"written to {document['out']} ({document['file_bytes']:,} bytes)")
    for line in _accuracy_warnings(document.get("accuracy", {})):
        say(line)


def _accuracy_warnings(found: dict[str, float]) -> Iterator[str]:
    """Warn of accuracy that fine-tuning lost."""
    before, after = found.get("pruned", 0.0), found.get("fine-tuned", 1.0)
    if after < before:
        yield (
            f"WARNING: fine-tuning lowered accuracy from {before:.1%} to {after:.1%}. Try a smaller --learning-rate, "
            "more epochs, or none"
        )
