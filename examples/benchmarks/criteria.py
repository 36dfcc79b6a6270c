"""Which criterion picks the right channels, and what does it cost?

    python examples/benchmarks/criteria.py --networks fmnist/resnet20/0.5 cifar10/resnet8/1.0 --seeds 0 1 2

Networks are trained here and kept in --cache. Three protocols run on each, for every criterion of ours and of
torch-pruning (its Hessian corrected, its activation criterion left out because it keeps one batch alone):

- alone: remove each channel by itself, measure the loss on test images, and rank-correlate that with the scores;
- pruned: remove 20, 30, 50 and 70 % of the multiply-accumulates, the lowest scores of the whole network first, at once
  or in ten steps with new scores and batch-norm statistics at each; test accuracy without repair, with batch-norm
  statistics taken anew, and after one epoch of fine-tuning;
- time: scoring data, as a ratio of a plain forward and backward over the same batches, processor time, median of five.

Results are JSON lines (--results) and nothing that is there is run again; --report writes the tables as Markdown.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.nn import functional

import hfp
from hfp.data import Dataset, augment, load_dataset
from hfp.importance import ScaledImportance, create, describe
from hfp.importance.groups import members
from hfp.models import create_model
from hfp.reconstruct.coupling import Coupling

RATIOS = (0.2, 0.3, 0.5, 0.7)
STEPS = (0.07, 0.14, 0.2, 0.25, 0.3, 0.37, 0.43, 0.5, 0.6, 0.7)
Batches = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Entry:
    """A criterion in the tables.

    ours: of this project, not torch-pruning's. scale: of `ScaledImportance`, for the ranking over the whole network;
    torch-pruning's criteria divide by the group's mean themselves. pruned, stepped, tuned: the protocols it runs in
    beside leaving one out.
    """

    criterion: str
    options: Mapping[str, Any] = field(default_factory=dict)
    ours: bool = True
    scale: Mapping[str, Any] = field(default_factory=dict)
    pruned: bool = True
    stepped: bool = False
    tuned: bool = False


BY_MEAN = {"normalise": "mean"}
BY_MACS = {"power": 0.5}
CRITERIA = {
    "group-kl": Entry("group-kl", {}, scale=BY_MEAN),
    "group-kl repaired": Entry("group-kl", {"repaired": True}, scale=BY_MEAN, stepped=True, tuned=True),
    "group-kl joint": Entry("group-kl", {"joint": True}, scale=BY_MACS),
    "group-kl joint repaired": Entry("group-kl", {"joint": True, "repaired": True}, scale=BY_MACS),
    "group-loss": Entry("group-loss", {}, scale=BY_MACS, stepped=True, tuned=True),
    "group-loss alone": Entry("group-loss", {"joint": False}, pruned=False),
    "group-fisher": Entry("group-fisher", {}, scale=BY_MEAN, stepped=True, tuned=True),
    "group-fisher gauss-newton": Entry("group-fisher", {"fisher": "gauss-newton"}, scale=BY_MEAN),
    "group-fisher + signed": Entry("group-fisher", {"first_order": "signed"}, pruned=False),
    "group-fisher + absolute": Entry("group-fisher", {"first_order": "absolute"}, pruned=False),
    "empirical-fisher": Entry("empirical-fisher", {}, scale=BY_MEAN),
    "empirical-fisher taylor": Entry("empirical-fisher", {"form": "taylor"}, pruned=False),
    "empirical-fisher paper": Entry("empirical-fisher", {"form": "paper"}, pruned=False),
    "sampled-fisher": Entry("sampled-fisher", {}, scale=BY_MEAN),
    "hutchinson": Entry("hutchinson", {}, pruned=False),
    "l1": Entry("l1", ours=False, stepped=True, tuned=True),
    "l2": Entry("l2", ours=False),
    "lamp": Entry("lamp", ours=False, stepped=True),
    "fpgm": Entry("fpgm", ours=False),
    "bn-scale": Entry("bn-scale", ours=False),
    "taylor": Entry("taylor", ours=False, stepped=True, tuned=True),
    "hessian": Entry("hessian", ours=False, stepped=True, tuned=True),
    "random": Entry("random", ours=False),
}


@dataclass(frozen=True)
class Sizes:
    """How many images are used. train: per epoch. score: by criteria and batch-norm. test: for accuracy and losses."""

    train: int
    epochs: int
    score: int
    test: int
    finetune: int


@dataclass(frozen=True)
class Trained:
    """A trained network with the images of the protocols: batches to score with, test images, and more to train on."""

    model: nn.Module
    shape: tuple[int, int, int]
    score: Batches
    test: Batches
    tune: Batches


# --- networks -----------------------------------------------------------------------------------------------------


def trained(network: str, seed: int, sizes: Sizes, cache: Path, root: Mapping[str, str]) -> Trained:
    """The network `dataset/model/width` of a seed, trained now or read from the cache."""
    name, architecture, width = network.split("/")
    data = load_dataset(name, root.get(name))
    torch.manual_seed(seed)
    model = create_model(architecture, len(data.classes), data.shape[0], width=float(width))
    file = cache / f"{network.replace('/', '-')}-{sizes.train}x{sizes.epochs}-{seed}.pt"
    if file.exists():
        model.load_state_dict(torch.load(file, weights_only=True))
    else:
        train(model, data, seed, sizes)
        cache.mkdir(parents=True, exist_ok=True)
        torch.save(model.state_dict(), file)
    order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(seed))
    chosen = torch.randperm(len(data.test), generator=torch.Generator().manual_seed(seed))[: sizes.test]
    return Trained(
        model.eval(),
        data.shape,
        batches(data, data.train.images, data.train.labels, order[: sizes.score], 128),
        batches(data, data.test.images, data.test.labels, chosen, 500),
        batches(data, data.train.images, data.train.labels, order[: sizes.finetune], 64),
    )


def batches(data: Dataset, images: Tensor, labels: Tensor, chosen: Tensor, size: int) -> Batches:
    """The chosen images, normalised, with their labels."""
    return [(data.normalise(images[part]), labels[part]) for part in chosen.split(size)]


def train(model: nn.Module, data: Dataset, seed: int, sizes: Sizes) -> None:
    """SGD with Nesterov momentum, one cycle of the learning rate, shifted and mirrored images."""
    generator = torch.Generator().manual_seed(seed)
    subset = torch.randperm(len(data.train), generator=generator)[: sizes.train]
    steps = sizes.epochs * (len(subset) // 128)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=steps)
    model.train()
    for _ in range(sizes.epochs):
        for part in subset[torch.randperm(len(subset), generator=generator)].split(128)[: len(subset) // 128]:
            images = data.normalise(augment(data.train.images[part], generator, padding=2))
            optimizer.zero_grad()
            functional.cross_entropy(model(images), data.train.labels[part]).backward()
            optimizer.step()
            schedule.step()


@torch.no_grad()
def accuracy(model: nn.Module, test: Batches) -> float:
    """Share of test images classified right."""
    model.eval()
    right = sum(int((model(images).argmax(1) == labels).sum()) for images, labels in test)
    return right / sum(len(labels) for _, labels in test)


@torch.no_grad()
def with_new_statistics(model: nn.Module, data: Batches) -> nn.Module:
    """A copy whose batch-norm statistics are the averages over the batches."""
    model = copy.deepcopy(model).train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
    for images, _ in data:
        model(images)
    return model.eval()


def finetuned(model: nn.Module, data: Batches) -> nn.Module:
    """A copy after one epoch, learning rate 0.02 falling to 0."""
    model = copy.deepcopy(model).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, len(data))
    for images, labels in data:
        optimizer.zero_grad()
        functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
        schedule.step()
    return model.eval()


# --- scores -------------------------------------------------------------------------------------------------------


def criterion_of(entry: Entry, model: nn.Module, data: Batches) -> Any:
    """The criterion, given the data if it wants any."""
    made = create(entry.criterion, **entry.options)
    if describe(entry.criterion).needs == "data":
        made.accumulate(model, data, functional.cross_entropy)
    return made


def scorer(entry: Entry, model: nn.Module, network: Trained, data: Batches) -> Callable[[Any], Tensor]:
    """What `hfp.prune` ranks by: the criterion's scores, scaled as the entry says."""
    scaled = ScaledImportance(criterion_of(entry, model, data), **entry.scale)
    if "power" in entry.scale:
        scaled.measure(model, torch.zeros(1, *network.shape))
    return lambda group: scaled(group)


def groups_of(network: Trained) -> dict[str, Any]:
    """The coupled groups of the network itself, without the classifier's."""
    coupling = Coupling.trace(network.model, torch.zeros(2, *network.shape), ["classifier"])
    group = coupling.groups_of(network.model)
    return {name: group(name) for name in coupling.names}


# --- protocol: alone ----------------------------------------------------------------------------------------------


def stages(model: nn.Module) -> list[tuple[str, Callable[[Tensor], Tensor]]]:
    """(prefix of the layers' names, function) whose composition is the network: what comes before a cut is run once."""
    if hasattr(model, "blocks"):
        blocks = [(f"blocks.{place}.", block) for place, block in enumerate(model.blocks)]
        head = lambda x: model.classifier(model.pool(x).flatten(1))  # noqa: E731
        return [("stem.", lambda x: functional.relu(model.stem(x))), *blocks, ("classifier", head)]
    layers = [(f"features.{place}.", layer) for place, layer in enumerate(model.features)]
    return [*layers, ("classifier", model.classifier)]


@torch.no_grad()
def loss_changes(network: Trained, groups: Mapping[str, Any]) -> dict[str, Tensor]:
    """What the test loss gains when each channel is removed alone, `[channels]` per group."""
    parts = stages(network.model)
    inputs = [[images for images, _ in network.test]]
    for _, part in parts:
        inputs.append([part(x) for x in inputs[-1]])
    labels = torch.cat([labels for _, labels in network.test])
    whole = functional.cross_entropy(torch.cat(inputs[-1]), labels)
    changes = {}
    for name, group in groups.items():
        readers = [member for member in members(group) if member.direction == "in"]
        starts = [next(i for i, (prefix, _) in enumerate(parts) if (m.name + ".").startswith(prefix)) for m in readers]
        found = []
        for channel in range(len(group[0].idxs)):
            with removed(readers, channel):
                x = inputs[min(starts)]
                for _, part in parts[min(starts) :]:
                    x = [part(piece) for piece in x]
            found.append(functional.cross_entropy(torch.cat(x), labels) - whole)
        changes[name] = torch.stack(found)
    return changes


class removed:  # noqa: N801
    """While open, no reader sees the channel: its weights for it are 0."""

    def __init__(self, readers: list[Any], channel: int) -> None:
        self.cut = [(m.layer.weight, m.indices[m.positions == channel]) for m in readers]
        self.kept = [weight[:, indices].clone() for weight, indices in self.cut]

    def __enter__(self) -> None:
        for weight, indices in self.cut:
            weight[:, indices] = 0

    def __exit__(self, *error: object) -> None:
        for (weight, indices), values in zip(self.cut, self.kept, strict=True):
            weight[:, indices] = values


def ranks(values: Tensor) -> Tensor:
    """Ranks, ties sharing their mean."""
    _, inverse, counts = values.double().unique(return_inverse=True, return_counts=True)
    return (counts.cumsum(0) - (counts - 1) / 2)[inverse]


def spearman(a: Tensor, b: Tensor) -> float:
    """Spearman's rank correlation; 0 where one side is constant."""
    pair = torch.stack([ranks(a), ranks(b)])
    return float(torch.corrcoef(pair)[0, 1].nan_to_num())


def run_alone(network: Trained, log: Log) -> None:
    """Rank correlation of every criterion's scores with the measured losses: whole network, and mean over groups."""
    todo = [name for name in CRITERIA if log.wants(protocol="alone", criterion=name)]
    if not todo:
        return
    groups = groups_of(network)
    truth = loss_changes(network, groups)
    for name in todo:
        criterion = criterion_of(CRITERIA[name], network.model, network.score)
        scores = {group: scored(criterion, groups[group]) for group in groups}
        log.add(
            protocol="alone",
            criterion=name,
            network=spearman(torch.cat(list(scores.values())), torch.cat(list(truth.values()))),
            layers=statistics.mean(spearman(scores[group], truth[group]) for group in groups),
        )


def scored(criterion: Any, group: Any) -> Tensor:
    """Scores of one group, on the processor."""
    return criterion(group).detach().cpu().double()


# --- protocol: pruned ---------------------------------------------------------------------------------------------


def run_pruned(network: Trained, log: Log) -> None:
    """Accuracy at every ratio, at once and in steps."""
    for name, entry in CRITERIA.items():
        ratios = [ratio for ratio in RATIOS if entry.pruned and log.wants(protocol="once", criterion=name, ratio=ratio)]
        score = scorer(entry, network.model, network, network.score) if ratios else None
        for ratio in ratios:
            pruned = cut(network.model, network, 1 - ratio, score)
            found = {
                "none": accuracy(pruned, network.test),
                "batch-norm": accuracy(with_new_statistics(pruned, network.score), network.test),
            }
            if entry.tuned:
                found["epoch"] = accuracy(finetuned(pruned, network.tune), network.test)
            log.add(protocol="once", criterion=name, ratio=ratio, **found)
        if entry.stepped and log.wants(protocol="steps", criterion=name):
            for ratio, accurate in list(stepwise(network, entry)):
                log.add(protocol="steps", criterion=name, ratio=ratio, **{"batch-norm": accurate})


def cut(model: nn.Module, network: Trained, share: float, score: Callable[[Any], Tensor]) -> nn.Module:
    """The model pruned to a share of its multiply-accumulates, the lowest scores of the whole network first.

    Where the next channel of a small network takes more than `hfp.prune` lets a budget be missed by, it goes too.
    """
    example = torch.zeros(2, *network.shape)
    for less in (0.0, 0.01, 0.02, 0.03, 0.04, 0.06, 0.08):
        try:
            budget = hfp.Budget(macs=share - less)
            return hfp.prune(model, example, budget, importance=score, ranking="global").model
        except hfp.InputError as error:
            refused = error
    raise refused


def stepwise(network: Trained, entry: Entry) -> Iterator[tuple[float, float]]:
    """(share removed, accuracy) along ten steps, each with new scores and then new batch-norm statistics.

    Group-loss is given the unpruned network's predictions as targets, which every step can be held to.
    """
    data = network.score
    if entry.criterion == "group-loss":
        with torch.no_grad():
            data = [(images, network.model(images).softmax(1)) for images, _ in data]
    model, left = network.model, 1.0
    for ratio in STEPS:
        score = scorer(entry, model, network, data)
        model = with_new_statistics(cut(model, network, (1 - ratio) / left, score), network.score)
        left = 1 - ratio
        if ratio in RATIOS:
            yield ratio, accuracy(model, network.test)


# --- protocol: time -----------------------------------------------------------------------------------------------


def run_time(network: Trained, log: Log) -> None:
    """Processor time of accumulating, per plain forward and backward over the same batches of 64."""
    images, labels = (torch.cat(column) for column in zip(*network.score, strict=True))
    data = list(zip(images.split(64)[:2], labels.split(64)[:2], strict=True))
    for name, entry in CRITERIA.items():
        if describe(entry.criterion).needs == "data" and log.wants(protocol="time", criterion=name):
            work = lambda entry=entry: criterion_of(entry, network.model, data)  # noqa: E731
            log.add(protocol="time", criterion=name, ratio=paired_ratio(work, lambda: plain(network.model, data)))
    if log.wants(protocol="time", criterion="torch-pruning's Hessian loop"):
        ratio = paired_ratio(lambda: hessian_loop(network.model, data), lambda: plain(network.model, data))
        log.add(protocol="time", criterion="torch-pruning's Hessian loop", ratio=ratio)


def paired_ratio(work: Callable[[], Any], reference: Callable[[], Any]) -> float:
    """Median of five ratios, each of two runs one after the other."""
    found = []
    for _ in range(6):
        times = [time.process_time()]
        for run in (reference, work):
            run()
            times.append(time.process_time())
        found.append((times[2] - times[1]) / (times[1] - times[0]))
    return statistics.median(found[1:])


def plain(model: nn.Module, data: Batches) -> None:
    """Forward and backward over the batches."""
    for images, labels in data:
        model.zero_grad()
        functional.cross_entropy(model(images), labels).backward()


def hessian_loop(model: nn.Module, data: Batches) -> None:
    """The accumulation that torch-pruning's documentation gives for its Hessian criterion."""
    criterion = tp.importance.GroupHessianImportance()
    criterion.zero_grad()
    for images, labels in data:
        for loss in functional.cross_entropy(model(images), labels, reduction="none"):
            model.zero_grad()
            loss.backward(retain_graph=True)
            criterion.accumulate_grad(model)


# --- results ------------------------------------------------------------------------------------------------------


class Log:
    """JSON lines of results for one network and seed, read first so that nothing runs twice."""

    def __init__(self, file: Path, network: str, seed: int) -> None:
        self.file, self.key = file, {"trained": network, "seed": seed}
        self.rows = [row for row in read(file) if row["trained"] == network and row["seed"] == seed]

    def wants(self, **what: Any) -> bool:
        """Whether there is no such result yet."""
        return not any(all(row.get(key) == value for key, value in what.items()) for row in self.rows)

    def add(self, **result: Any) -> None:
        """Write one result at once."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("a") as stream:
            stream.write(json.dumps({**self.key, **result}) + "\n")
        print(json.dumps({**self.key, **result}), flush=True)


def read(file: Path) -> list[dict[str, Any]]:
    """All results in a file, none where it doesn't exist."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def cell(values: list[float], scale: float = 1.0, digits: int = 1) -> str:
    """Mean ± spread (standard deviation over seeds)."""
    if not values:
        return ""
    spread = f" ± {scale * statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{scale * statistics.mean(values):.{digits}f}{spread}"


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def report(rows: list[dict[str, Any]]) -> str:
    """All tables as Markdown: ours first, torch-pruning's after."""
    parts = []
    for network in dict.fromkeys(row["trained"] for row in rows):
        mine = [row for row in rows if row["trained"] == network]
        seeds = sorted({row["seed"] for row in mine})
        parts.append(f"## {network}, seeds {', '.join(map(str, seeds))}\n")
        for title, header, lines in (alone_table(mine), *pruned_tables(mine), time_table(mine)):
            if lines:
                parts.append(f"### {title}\n\n{table(header, lines)}")
    return "\n".join(parts)


def values(rows: list[dict[str, Any]], key: str, **what: Any) -> list[float]:
    """One number of all results that match."""
    return [row[key] for row in rows if key in row and all(row.get(name) == value for name, value in what.items())]


def label(name: str) -> str:
    """A criterion's name in the tables."""
    entry = CRITERIA.get(name)
    return name if entry is None or entry.ours else f"{name} (torch-pruning)"


def alone_table(rows: list[dict[str, Any]]) -> tuple[str, list[str], list[list[str]]]:
    """Rank correlations."""
    lines = [
        [
            label(name),
            *(cell(values(rows, key, protocol="alone", criterion=name), 1, 3) for key in ("network", "layers")),
        ]
        for name in CRITERIA
        if values(rows, "network", protocol="alone", criterion=name)
    ]
    title = "Leave one out: Spearman's correlation of scores and measured losses"
    return title, ["criterion", "whole network", "mean per group"], lines


def pruned_tables(rows: list[dict[str, Any]]) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """Accuracies, one table per way of pruning and repairing."""
    ways = [
        ("once", "none", "Accuracy in %, pruned at once, no repair"),
        ("once", "batch-norm", "Accuracy in %, pruned at once, batch-norm statistics anew"),
        ("once", "epoch", "Accuracy in %, pruned at once, one epoch of fine-tuning"),
        ("steps", "batch-norm", "Accuracy in %, ten steps with new scores and batch-norm statistics"),
    ]
    for protocol, repair, title in ways:
        lines = []
        for name in CRITERIA:
            found = [values(rows, repair, protocol=protocol, criterion=name, ratio=ratio) for ratio in RATIOS]
            if any(found):
                lines.append([label(name), *(cell(accuracies, 100) for accuracies in found)])
        yield title, ["criterion", *(f"{100 * ratio:.0f} % of MACs removed" for ratio in RATIOS)], lines


def time_table(rows: list[dict[str, Any]]) -> tuple[str, list[str], list[list[str]]]:
    """Ratios of time."""
    names = dict.fromkeys(row["criterion"] for row in rows if row["protocol"] == "time")
    lines = [[label(name), cell(values(rows, "ratio", protocol="time", criterion=name), 1, 2)] for name in names]
    return "Time to score, per plain forward and backward", ["criterion", "ratio"], lines


def draw(rows: list[dict[str, Any]], file: Path) -> None:
    """Accuracy against the share removed, one panel per network, with batch-norm statistics taken anew."""
    from matplotlib.figure import Figure

    networks = list(dict.fromkeys(row["trained"] for row in rows if row["protocol"] == "once"))
    figure = Figure(figsize=(6 * max(1, len(networks)), 4.5), layout="constrained")
    for place, network in enumerate(networks, start=1):
        axes = figure.add_subplot(1, len(networks), place, title=network, xlabel="share of MACs removed")
        mine = [row for row in rows if row["trained"] == network]
        for name, entry in CRITERIA.items():
            found = [values(mine, "batch-norm", protocol="once", criterion=name, ratio=ratio) for ratio in RATIOS]
            if all(found):
                means = [100 * statistics.mean(accuracies) for accuracies in found]
                axes.plot(RATIOS, means, label=label(name), linestyle="-" if entry.ours else ":", marker=".")
        axes.set_ylabel("accuracy in %")
        axes.legend(fontsize=6)
    figure.savefig(file, dpi=120)


def main() -> None:
    """Read the command line, run what is missing, write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=["fmnist/resnet20/1.0", "cifar10/resnet20/1.0"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--protocols", nargs="+", default=["alone", "pruned", "time"])
    parser.add_argument("--root", nargs="*", default=[], metavar="DATASET=PATH", help="where a data set lies")
    parser.add_argument("--train-images", type=int, default=50_000)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--score-images", type=int, default=1024)
    parser.add_argument("--test-images", type=int, default=10_000)
    parser.add_argument("--finetune-images", type=int, default=50_000)
    parser.add_argument("--cache", type=Path, default=Path("runs/criteria"))
    parser.add_argument("--results", type=Path, default=Path("runs/criteria/results.jsonl"))
    parser.add_argument("--report", type=Path, help="write the tables here, and the plot beside it")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    sizes = Sizes(given.train_images, given.epochs, given.score_images, given.test_images, given.finetune_images)
    roots = dict(item.split("=", 1) for item in given.root)
    for seed in given.seeds:
        for name in given.networks:
            log = Log(given.results, name, seed)
            network = trained(name, seed, sizes, given.cache, roots)
            if log.wants(protocol="trained"):
                log.add(protocol="trained", accuracy=accuracy(network.model, network.test))
            if "alone" in given.protocols:
                run_alone(network, log)
            if "pruned" in given.protocols:
                run_pruned(network, log)
            if "time" in given.protocols:
                run_time(network, log)
    if given.report:
        rows = read(given.results)
        given.report.write_text(report(rows))
        draw(rows, given.report.with_suffix(".png"))


if __name__ == "__main__":
    main()
