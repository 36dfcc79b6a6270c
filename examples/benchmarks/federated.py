"""Defaults of the federated run, measured: variants of one experiment under the same seeds.

    python examples/benchmarks/federated.py --study batch-norm --seeds 3

Every variant sees the same partition, initial weights and batches at a seed, so the last column is a mean of paired
differences from the first variant. Results are kept as JSON lines (--results) and a finished run is not repeated.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from hfp import Experiment, simulate
from hfp.commands.run import option

Variant = Mapping[str, Any]

STUDIES: dict[str, dict[str, Variant]] = {
    "batch-norm": {
        "ca-hfp, reestimate": {},
        "ca-hfp, aggregate": {"batch_norm": "aggregate"},
        "fedavg, reestimate": {"method": "fedavg"},
        "fedavg, aggregate": {"method": "fedavg", "batch_norm": "aggregate"},
    },
    "form": {
        "curvature: h w²": {},
        "taylor: -g w + h w²/2": {"options": {"form": "taylor"}},
        "paper: g w + h w²": {"options": {"form": "paper"}},
        "random masks always": {"options": {"warmup": 10_000}},
    },
    "estimator": {
        "fisher, smoothing 0.5": {"options": {"smoothing": 0.5}},
        "fisher, smoothing 0": {"options": {"smoothing": 0.0}},
        "fisher, smoothing 0.9": {"options": {"smoothing": 0.9}},
        "centered": {"options": {"estimator": "centered"}},
        "secant": {"options": {"estimator": "secant"}},
    },
    "warmup": {
        "3 rounds": {"options": {"warmup": 3}},
        "1 round": {"options": {"warmup": 1}},
        "2 rounds": {"options": {"warmup": 2}},
        "5 rounds": {"options": {"warmup": 5}},
        "10 rounds": {"options": {"warmup": 10}},
    },
    "rule": {
        "fill with global": {},
        "mean over holders": {"options": {"rule": "holders"}},
        "fill, a quarter explored": {"options": {"explore": 0.25}},
        "holders, a quarter explored": {"options": {"rule": "holders", "explore": 0.25}},
        "holders, half explored": {"options": {"rule": "holders", "explore": 0.5}},
    },
}


def main() -> None:
    """Run the chosen study and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", choices=STUDIES, default="batch-norm")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--train-images", type=int)
    parser.add_argument("--rank", type=int, default=1)
    parser.add_argument("--alpha", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--option", type=option, action="append", default=[], help="NAME=VALUE for every variant")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--results", type=Path, default=Path("runs/federated.jsonl"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    base = Experiment(
        dataset=arguments.dataset,
        train_images=arguments.train_images,
        rank=arguments.rank,
        alpha=arguments.alpha,
        rounds=arguments.rounds,
        options=dict(arguments.option),
    )
    table = {
        name: [final_accuracy(changed(base, variant, seed), arguments.results) for seed in range(arguments.seeds)]
        for name, variant in STUDIES[arguments.study].items()
    }
    print(markdown(table))


def changed(base: Experiment, variant: Variant, seed: int) -> Experiment:
    """The variant at a seed; options that belong to another method fall away."""
    same_method = variant.get("method", base.method) == base.method
    options = {**(base.options if same_method else {}), **variant.get("options", {})}
    return dataclasses.replace(base, **{**variant, "seed": seed, "options": options})


def final_accuracy(experiment: Experiment, results: Path) -> float:
    """The mean test accuracy of the last five rounds; a round's own accuracy wobbles."""
    key = experiment.as_dict()
    for line in results.read_text().splitlines() if results.exists() else ():
        kept = json.loads(line)
        if kept["experiment"] == key:
            return kept["accuracy"]
    run = simulate(experiment)
    accuracy = statistics.mean(record.accuracy for record in run.history[-5:])
    results.parent.mkdir(parents=True, exist_ok=True)
    with results.open("a") as file:
        curve = [round(record.accuracy, 2) for record in run.history]
        file.write(json.dumps({"experiment": key, "accuracy": accuracy, "curve": curve}) + "\n")
    return accuracy


def markdown(table: Mapping[str, list[float]]) -> str:
    """Mean, spread (standard deviation) and paired difference from the first row."""
    first = next(iter(table.values()))
    lines = ["| variant | accuracy, % | difference, points |", "|---|---|---|"]
    for name, values in table.items():
        differences = [value - reference for value, reference in zip(values, first, strict=True)]
        paired = "" if values is first else f"{statistics.mean(differences):+.2f} ± {_spread(differences):.2f}"
        lines.append(f"| {name} | {statistics.mean(values):.2f} ± {_spread(values):.2f} | {paired} |")
    return "\n".join(lines)


def _spread(values: list[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


if __name__ == "__main__":
    main()
