"""What does each closed-form repair of `hfp.prune` give back?

    python examples/benchmarks/repair.py --data examples/benchmarks/repair_usual.csv
    python examples/benchmarks/repair.py --networks fmnist/resnet8 cifar10/resnet8 --root cifar10=PATH --all

Small networks (`repair_tasks.py`) are trained and kept in --cache, pruned to shares of their multiply-accumulates by
`hfp.prune`, and repaired in each way from the same training data; accuracy on test data, at once and after one more
epoch. Every repair starts from the same pruned network, so that rows are paired by seed. `--all` tries every kind of
repair after group Fisher; without it, the usual repair is compared with none and with batch-norm alone, after two
criteria. Results are kept as JSON lines and nothing that is there is run again; with --data their means are written to
the page's data file.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from data_files import Line, commit, put, spread
from repair_tasks import Task, task
from safetensors.torch import load_model, save_model
from torch import nn

import hfp
from hfp.layers.calling import call
from hfp.pruning.repair import repair

SETTING = ("network", "seeds", "criterion", "repair", "macs_left", "after")
NETWORKS = ("digits/resnet20", "digits/vgg-small", "fmnist/resnet20", "fmnist/vgg-small", "fmnist/vit", "text/llama")
KINDS: tuple[tuple[str, ...], ...] = (
    (),
    ("batch-norm",),
    ("bias",),
    ("bias", "batch-norm"),
    ("least-squares",),
    ("least-squares", "batch-norm"),
)


def trained(made: Task, file: Path, seed: int) -> nn.Module:
    """The network of a seed, trained now or read from the cache."""
    torch.manual_seed(seed)
    model = made.network()
    if file.exists():
        load_model(model, file)
    else:
        made.train(model, seed)
        file.parent.mkdir(parents=True, exist_ok=True)
        save_model(model, file)
    return model.eval()


def measure(model: nn.Module, made: Task, seed: int, every: bool) -> Iterator[dict[str, Any]]:
    """One row per share, criterion and repair."""
    batches = made.batches()
    start = time.process_time()
    with torch.no_grad():
        for inputs, _ in batches:
            call(model, inputs)
    yield {"share": 1.0, "criterion": "", "repair": "", "pass": time.process_time() - start, **made.test(model)}
    norms = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
    kinds = [each for each in KINDS if every or "bias" not in each] if norms else [(), ("least-squares",)]
    for share in (0.7, 0.5, 0.3) if every else (0.5, 0.3):
        for criterion in ("group-fisher",) if every else ("l2", made.criterion):
            pruned = hfp.prune(
                model, batches[0][0], hfp.Budget(macs=share), importance=criterion, data=batches, loss_fn=made.loss,
                repair=None,
            )  # fmt: skip
            for each in kinds:
                row = {"share": share, "criterion": criterion, "repair": " + ".join(each) or "none"}
                compact = copy.deepcopy(pruned.model)
                start = time.process_time()
                repair(model, compact, pruned.index_map, batches, each)
                row |= {"seconds": time.process_time() - start, **made.test(compact)}
                if every or not each or each == kinds[-1]:
                    made.tune(compact, seed)
                    row |= {f"tuned {name}": value for name, value in made.test(compact).items()}
                yield row


def lines(rows: Sequence[dict[str, Any]]) -> Iterator[Line]:
    """Figures over seeds, at once and after fine-tuning, as lines of the data file; accuracy in percent."""
    alike: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        alike.setdefault((row["network"], row["criterion"], row["repair"], row["share"]), []).append(row)
    plain = {key: found for key, found in alike.items() if key[2] == "none"}
    for (network, criterion, kinds, share), found in alike.items():
        setting = {"network": network, "seeds": str(len(found)), "criterion": criterion, "repair": kinds}
        setting |= {"macs_left": f"{100 * share:.0f}", "commit": found[0].get("commit", commit())}
        without = plain.get((network, criterion, "none", share), [])
        for prefix, after in (("", "repair" if criterion else "training"), ("tuned ", "fine-tuning")):
            if f"{prefix}accuracy" not in found[0]:
                continue
            values = [100 * row[f"{prefix}accuracy"] for row in found]
            line = {**setting, "after": after, **spread("accuracy", values, ".1f")}
            if f"{prefix}perplexity" in found[0]:
                line |= spread("perplexity", [row[f"{prefix}perplexity"] for row in found], ".2f")
            if kinds not in ("", "none"):
                before = {row["seed"]: 100 * row[f"{prefix}accuracy"] for row in without}
                gains = [value - before[row["seed"]] for value, row in zip(values, found, strict=True)]
                line |= {**spread("gain", gains, ".1f"), "better": f"{sum(gain > 0 for gain in gains)} of {len(gains)}"}
            yield line


def main() -> None:
    """Read the command line, run what is missing, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--all", action="store_true", help="try every kind of repair")
    parser.add_argument("--root", nargs="*", default=[], metavar="DATASET=PATH", help="where a data set lies")
    parser.add_argument("--cache", type=Path, default=Path("runs/repair"))
    parser.add_argument("--data", type=Path, help="write the figures to this data file")
    given = parser.parse_args()
    torch.set_num_threads(1)
    roots = dict(item.split("=", 1) for item in given.root)
    results = given.cache / "results.jsonl"
    rows = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    state = commit()
    for seed in given.seeds:
        for network in given.networks:
            if any((row["network"], row["seed"]) == (network, seed) for row in rows):
                continue
            made = task(network, roots.get(network.split("/")[0]))
            model = trained(made, given.cache / f"{network.replace('/', '-')}-{seed}.safetensors", seed)
            common = {"network": network, "seed": seed, "commit": state}
            found = [{**common, **row} for row in measure(model, made, seed, given.all)]
            results.parent.mkdir(parents=True, exist_ok=True)
            with results.open("a") as file:
                file.writelines(json.dumps(row) + "\n" for row in found)
            rows += found
            print(network, seed, flush=True)
    for line in (figures := list(lines(rows))):
        print(", ".join(line.values()))
    if given.data:
        put(given.data, SETTING, figures)


if __name__ == "__main__":
    main()
