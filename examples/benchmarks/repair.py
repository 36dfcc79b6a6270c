"""What does each closed-form repair of `hfp.prune` give back?

    python examples/benchmarks/repair.py --root cifar10=PATH --data examples/benchmarks/repair.csv

Small networks of half width are trained (kept in --cache), pruned to shares of their multiply-accumulates by
`hfp.prune`, and repaired in each way from the same 1,024 training images; accuracy on test images, at once and after
one more epoch over the 8,000. Every repair starts from the same pruned network, so that rows are paired by seed.
Results are kept as JSON lines and nothing that is there is run again; with --data their means are written to the page's
data file.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from data_files import Line, put, spread
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.functional import cross_entropy

import hfp
from hfp.data import Dataset, load_dataset
from hfp.models import create_model
from hfp.pruning.finetuning import accuracy, finetune, training_batches
from hfp.pruning.repair import repair

SETTING = ("network", "seeds", "criterion", "repair", "macs_left", "after")
SHARES = (0.7, 0.5, 0.3)
CRITERIA = ("group-fisher",)
REPAIRS: tuple[tuple[str, ...], ...] = (
    (),
    ("batch-norm",),
    ("bias",),
    ("bias", "batch-norm"),
    ("least-squares",),
    ("least-squares", "batch-norm"),
)
WIDTH, IMAGES, TEST, EPOCHS, BATCHES = 0.5, 8_000, 2_000, 5, 8


def smaller(data: Dataset) -> Dataset:
    """The first images of a data set, in a fixed random order."""
    draw = torch.Generator().manual_seed(0)
    train, test = (
        replace(split, images=split.images[chosen], labels=split.labels[chosen])
        for split, size in ((data.train, IMAGES), (data.test, TEST))
        for chosen in [torch.randperm(len(split), generator=draw)[:size]]
    )
    return replace(data, train=train, test=test)


def trained(name: str, architecture: str, data: Dataset, seed: int, cache: Path) -> nn.Module:
    """The network of a seed, trained now or read from the cache."""
    torch.manual_seed(seed)
    model = create_model(architecture, len(data.classes), data.shape[0], width=WIDTH)
    file = cache / f"{name}-{architecture}-{IMAGES}x{EPOCHS}-{seed}.safetensors"
    if file.exists():
        model.load_state_dict(load_file(file))
    else:
        finetune(model, data, EPOCHS, learning_rate=0.05, seed=seed)
        cache.mkdir(parents=True, exist_ok=True)
        save_file(model.state_dict(), file)
    return model.eval()


def measure(model: nn.Module, data: Dataset, seed: int) -> Iterator[dict[str, Any]]:
    """One row per share, criterion and repair."""
    batches = training_batches(data, 128, BATCHES, torch.device("cpu"))
    yield {"share": 1.0, "criterion": "", "repair": "", "accuracy": accuracy(model, data)}
    for share in SHARES:
        for criterion in CRITERIA:
            pruned = hfp.prune(
                model, batches[0][0][:2], hfp.Budget(macs=share), importance=criterion, data=batches,
                loss_fn=cross_entropy, repair=None,
            )  # fmt: skip
            for kinds in REPAIRS:
                compact = copy.deepcopy(pruned.model)
                start = time.process_time()
                repair(model, compact, pruned.index_map, batches, kinds)
                seconds, at_once = time.process_time() - start, accuracy(compact, data)
                finetune(compact, data, 1, seed=seed)
                row = {"share": share, "criterion": criterion, "repair": " + ".join(kinds) or "none"}
                yield {**row, "seconds": seconds, "accuracy": at_once, "tuned": accuracy(compact, data)}


def lines(rows: Sequence[dict[str, Any]]) -> Iterator[Line]:
    """Accuracies in percent over seeds, at once and after fine-tuning, as lines of the data file."""
    alike: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        alike.setdefault((row["network"], row["criterion"], row["repair"], row["share"]), []).append(row)
    for (network, criterion, kinds, share), found in alike.items():
        setting = {"network": network, "seeds": str(len(found)), "criterion": criterion, "repair": kinds}
        setting["macs_left"] = f"{100 * share:.0f}"
        for figure, after in (("accuracy", "repair" if criterion else "training"), ("tuned", "fine-tuning")):
            if figure in found[0]:
                values = [100 * row[figure] for row in found]
                yield {**setting, "after": after, **spread("accuracy", values, ".1f")}


def main() -> None:
    """Read the command line, run what is missing, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=["fmnist/resnet8", "cifar10/resnet8"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--root", nargs="*", default=[], metavar="DATASET=PATH", help="where a data set lies")
    parser.add_argument("--cache", type=Path, default=Path("runs/repair"))
    parser.add_argument("--data", type=Path, help="write the figures to this data file")
    given = parser.parse_args()
    torch.set_num_threads(1)
    roots = dict(item.split("=", 1) for item in given.root)
    results = given.cache / "results.jsonl"
    rows = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    for network in given.networks:
        name, architecture = network.split("/")
        data = None
        for seed in given.seeds:
            if any((row["network"], row["seed"]) == (network, seed) for row in rows):
                continue
            data = data or smaller(load_dataset(name, roots.get(name)))
            model = trained(name, architecture, data, seed, given.cache)
            found = [{"network": network, "seed": seed, **row} for row in measure(model, data, seed)]
            with results.open("a") as file:
                file.writelines(json.dumps(row) + "\n" for row in found)
            rows += found
            print(network, seed, flush=True)
    for line in (made := list(lines(rows))):
        print(", ".join(line.values()))
    if given.data:
        put(given.data, SETTING, made)


if __name__ == "__main__":
    main()
