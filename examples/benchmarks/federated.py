"""Defaults of the federated run, measured: variants of one experiment under the same seeds.

    python examples/benchmarks/federated.py --study batch-norm --seeds 3 --data examples/benchmarks/federated.csv

Every variant sees the same partition, initial weights and batches at a seed, so the last column is a mean of paired
differences from the first variant. Finished runs are kept (--out) and not repeated. With --data the figures are written
to the page's data file.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_files import Line, both, put
from parts import PARTS, Study

from hfp.comparison.definition import Comparison, Variant
from hfp.comparison.runs import ComparisonFolder, run_missing
from hfp.comparison.table import Row, gather, rows
from hfp.federation.experiment import Experiment
from hfp.settings import pair

PAPER_STUDIES: dict[str, Study] = {
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
"""Variants of the paper's own form, for what they don't set."""

OWN_STUDIES: dict[str, Study] = {
    "parts": PARTS,
    "head-start": {
        "10, 0.85": {},
        "1": {"head_start": 1.0},
        "3, 0.7": {"head_start": 3.0, "head_start_decay": 0.7},
        "30, 0.7": {"head_start": 30.0, "head_start_decay": 0.7},
        "10, 0.5": {"head_start_decay": 0.5},
        "10, 0.7": {"head_start_decay": 0.7},
        "10, 0.7, fill": {"head_start_decay": 0.7, "options": {"rule": "fill"}},
        "fedavgm, 1": {"method": "fedavgm", "head_start": 1.0},
        "fedavgm, 10, 0.7": {"method": "fedavgm", "head_start_decay": 0.7},
    },
    "server-momentum": {
        "0.5": {},
        "0": {"options": {"server_momentum": 0.0}},
        "0.3": {"options": {"server_momentum": 0.3}},
        "0.7": {"options": {"server_momentum": 0.7}},
    },
    "shrink": {
        "0.4": {},
        "0.2": {"options": {"shrink": 0.2}},
        "0.7": {"options": {"shrink": 0.7}},
        "1": {"options": {"shrink": 1.0}},
        "0.4, a quarter explored": {"options": {"explore": 0.25}},
    },
}

AUTHORS_TRAINING = {"clip_norm": 1.0, "learning_rate_schedule": "steps", "weight_decay": 5e-4}

BASELINE_STUDIES: dict[str, Study] = {
    "dapperfl": {
        "fuses from round 2, dense epoch": {},
        "fuses in every round": {"options": {"fusion": "always"}},
        "never fuses": {"options": {"fusion": "never"}},
        "fuses in every round, half of the epoch pruned": {"options": {"fusion": "always", "halves": True}},
    },
    "prunefl": {
        "adapts every 50 rounds": {},
        "adapts every 5 rounds": {"options": {"every": 5}},
    },
    "fedrolex": {
        "rolls by a channel": {},
        "rolls around within the run": {"options": {"roll": "run"}},
        "rolls by a channel, clipped at 1": {"clip_norm": 1.0},
    },
    "heterofl": {
        "clipped at 1": {"clip_norm": 1.0},
        "not clipped": {},
        "clipped, steps and weight decay": AUTHORS_TRAINING,
    },
    "fedmp": {
        "clients' own ratios": {},
        "ratios of the bandit": {"method": "fedmp-bandit"},
    },
    "fedavg": {
        "as it is": {},
        "clipped at 1": {"clip_norm": 1.0},
    },
}
"""Variants of other methods: what differs from their authors' code, and what that is worth."""

STUDIES = {
    name: {v: {"method": "ca-hfp-paper", **c} for v, c in study.items()} for name, study in PAPER_STUDIES.items()
}
STUDIES |= OWN_STUDIES
STUDIES |= {
    method: {v: {"method": method, **c} for v, c in study.items()} for method, study in BASELINE_STUDIES.items()
}

SETTING = ("study", "dataset", "model", "alpha", "rank", "rounds", "head_start", "seeds", "variant")
SHARED = ("dataset", "model", "train_images", "rounds", "head_start", "head_start_decay")


def main() -> None:
    """Run the chosen study and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", choices=STUDIES, default="batch-norm")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--model", default="resnet8")
    parser.add_argument("--train-images", type=int)
    parser.add_argument("--rank", type=int, default=1)
    parser.add_argument("--alpha", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument(
        "--head-start", type=float, default=Experiment.head_start, help="`hfp run --help` tells what it is"
    )
    parser.add_argument("--head-start-decay", type=float, default=Experiment.head_start_decay)
    parser.add_argument("--option", type=pair, action="append", default=[], help="NAME=VALUE for every variant")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/federated"))
    parser.add_argument("--data", type=Path, help="write the figures to this data file")
    arguments = parser.parse_args()
    comparison = Comparison(
        variants=variants(STUDIES[arguments.study], dict(arguments.option)),
        base={name: getattr(arguments, name) for name in SHARED},
        seeds=tuple(range(arguments.seeds)),
        alphas=(arguments.alpha,),
        ranks=(arguments.rank,),
        threads=arguments.threads,
    )
    folder = ComparisonFolder(arguments.out, arguments.threads)
    folder.describe(comparison)
    failures = run_missing(comparison, folder, 1, on_round=lambda: None, on_run=lambda cell: None)
    made = rows(comparison, gather(comparison, lambda cell: folder.load(cell.experiment)))
    print(markdown(made))
    if arguments.data:
        put(arguments.data, SETTING, [line(arguments, row) for row in made])
    for failure in failures:
        print(f"\n{failure.cell.variant}, seed {failure.cell.seed}: {failure.reason}")


def variants(study: Mapping[str, Mapping[str, Any]], options: Mapping[str, Any]) -> tuple[Variant, ...]:
    """The study's variants; options for all of them don't reach other methods than CA-HFP."""
    return tuple(
        Variant(
            name,
            {**changes, "options": {**options, **changes.get("options", {})}}
            if changes.get("method", "ca-hfp").startswith("ca-hfp")
            else changes,
        )
        for name, changes in study.items()
    )


def line(arguments: argparse.Namespace, row: Row) -> Line:
    """A row of a study as a line of the data file."""
    asked = {name: str(getattr(arguments, name)) for name in ("study", "dataset", "model", "rank", "rounds")}
    asked |= {name: f"{getattr(arguments, name):g}" for name in ("alpha", "head_start")}
    figures = {**both("accuracy", row.accuracy), **both("difference", row.difference, "+.2f")}
    return {**asked, "seeds": str(row.seeds), "variant": row.variant, **figures}


def markdown(made: list[Row]) -> str:
    """Mean, spread (standard deviation) and paired difference from the first row."""
    lines = ["| variant | accuracy, % | difference, points |", "|---|---|---|"]
    for row in made:
        paired = "" if row.difference is None else f"{row.difference:+.2f}"
        lines.append(f"| {row.variant} | {row.accuracy:.2f} | {paired} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
