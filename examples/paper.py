"""Tables I and II and figures 3 to 6 of arXiv 2603.12591 at the size of two cores.

    python examples/paper.py --dataset fmnist
    python examples/paper.py --dataset cifar10 --data-root FOLDER

Runs four studies, one after the other, and keeps every finished run (--out; started again, it goes on). It writes the
figures to a data file beside the page, pictures beside that, and a page with the tables where there is no page yet; of
a page that is there only the tables change. Sizes are those of minutes: less data, fewer rounds and smaller networks
than the paper's, and 2,000 test images, the same for all, unless --whole-test-set.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import custom_method  # noqa: F401  (makes delta-w known)
import torch
from rich.console import Console

from hfp.comparison.definition import Comparison, Variant, variants_of
from hfp.comparison.page import file_name, round_chart, size_chart
from hfp.comparison.runs import ComparisonFolder, missing, run_missing
from hfp.comparison.table import Row, Runs, gather, rows
from hfp.data import DataRequest, Dataset, Split, load_dataset, register_dataset
from hfp.results.atomic import write_atomically
from hfp.results.charts import standalone

sys.path.insert(0, str(Path(__file__).parent / "benchmarks"))
from data_files import Line, both, put  # noqa: E402  (beside the benchmarks)
from render_pages import rendered  # noqa: E402

ALPHAS = (0.1, 1.0, 10.0)
TABLE_1 = ("ca-hfp", "ca-hfp-paper", "fedavg", "fedavgm", "fedprox", "prunefl", "fedmp", "dapperfl")
PRUNING = ("ca-hfp", "ca-hfp-paper", "fedmp", "dapperfl")
RANDOM = {"warmup": 1_000_000}

TABLE_2 = (
    Variant("curvature, with", {"method": "ca-hfp-paper"}),
    Variant("curvature, without", {"method": "ca-hfp-paper", "options": {"shrink": 1.0}}),
    Variant("random, with", {"method": "ca-hfp-paper", "options": RANDOM}),
    Variant("random, without", {"method": "ca-hfp-paper", "options": {**RANDOM, "shrink": 1.0}}),
    Variant("l1, with", {"method": "fedmp"}),
    Variant("Δw, with", {"method": "delta-w"}),
)
TESTED = 2000
SETTING = ("study", "variant", "alpha", "size")


def _tested_in_part(name: str, request: DataRequest) -> Dataset:
    data = load_dataset(
        name,
        request.root,
        limit=request.limit,
        download=request.download,
        seed=request.seed,
        image_size=request.image_size,
        cache=request.cache,
    )
    chosen = torch.randperm(len(data.test), generator=torch.Generator().manual_seed(0))[:TESTED]
    return dataclasses.replace(data, name=request.name, test=Split(data.test.images[chosen], data.test.labels[chosen]))


DATASETS = ("digits", "fmnist", "cifar10", "cifar100", "imagefolder")
for _name in DATASETS:  # here and not in main, so that processes of their own know them too
    register_dataset(f"{_name}-{TESTED}", partial(_tested_in_part, _name))


@dataclass(frozen=True)
class Study:
    """One comparison, and what of it goes on the page: the pictures' name -> their SVG."""

    title: str
    about: str
    comparison: Comparison
    pictures: Callable[[Comparison, Runs, Sequence[Row]], dict[str, str]]


def studies(base: Mapping[str, Any], seeds: tuple[int, ...]) -> dict[str, Study]:
    """The paper's experiments, by the name of a study."""

    def compared(variants: tuple[Variant, ...], **axes: Any) -> Comparison:
        return Comparison(variants, base, seeds=seeds, **axes)

    return {
        "table-1": Study(
            "Table I and figure 3: methods at half of the channels",
            "Every client removes 50 % of its channels.",
            compared(variants_of(TABLE_1), alphas=ALPHAS, ratios=(0.5,)),
            _along_rounds,
        ),
        "table-2": Study(
            "Table II: scores, with and without reconstruction",
            "Half of the channels are removed. “Without”: what a client did not hold counts as zero in the mean.",
            compared(TABLE_2, alphas=ALPHAS, ratios=(0.5,)),
            lambda *_: {},
        ),
        "ratios": Study(
            "Figures 4 and 5: from ratio to ratio",
            "All clients remove the same share of their channels; alpha 1.",
            compared(variants_of(PRUNING), ratios=(0.0, 0.25, 0.5, 0.75, 0.9)),
            _over_sizes("Accuracy", "Megabytes moved", "Training"),
        ),
        "ranks": Study(
            "Figure 6: device ranks",
            "Half of the clients remove the first share, half the second: 0 and 25 %, 25 and 50, 50 and 75, 75 and 90; "
            "alpha 1. Time is simulated, on the `phone` profile.",
            compared(variants_of(("ca-hfp", "fedavg", "fedmp", "dapperfl")), ranks=(0, 1, 2, 3)),
            _over_sizes("Accuracy", "Time on the clients' devices"),
        ),
    }


def _along_rounds(comparison: Comparison, runs: Runs, made: Sequence[Row]) -> dict[str, str]:
    size = comparison.sizes[0][0]
    return {
        f"alpha {alpha:g}": round_chart(comparison, runs, alpha, size, "round", legend=True)
        for alpha in comparison.alphas
    }


def _over_sizes(*titles: str) -> Callable[[Comparison, Runs, Sequence[Row]], dict[str, str]]:
    def draw(comparison: Comparison, _runs: Runs, made: Sequence[Row]) -> dict[str, str]:
        return {title: size_chart(comparison, made, comparison.alphas[0], title, legend=True) for title in titles}

    return draw


def main() -> None:
    """Run what is missing, then write the page."""
    arguments = _arguments()
    arguments.page.parent.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(arguments.threads)
    base = {
        "dataset": arguments.dataset if arguments.whole_test_set else f"{arguments.dataset}-{TESTED}",
        "data_root": arguments.data_root,
        "train_images": arguments.images,
        "model": arguments.model,
        "rounds": arguments.rounds,
        "head_start": 1.0,  # the paper's rounds are all alike
        "evaluate": max(1, arguments.rounds // 5),
        "device": arguments.device,
    }
    console, parts = Console(stderr=True), []
    for name, study in studies(base, tuple(range(arguments.seeds))).items():
        if name in arguments.studies:
            parts += _section(name, study, arguments, console)
    if not arguments.page.exists():
        write_atomically(arguments.page, "\n".join([*_head(arguments), *parts]).encode())
    write_atomically(arguments.page, rendered(arguments.page).encode())
    print(f"written to {arguments.page}")


def _section(name: str, study: Study, arguments: argparse.Namespace, console: Console) -> list[str]:
    """Run a study, write its figures and pictures beside the page, and make its part of the page."""
    folder = ComparisonFolder(arguments.out / arguments.dataset)  # one for all, so that studies share runs
    folder.describe(study.comparison)
    todo = len(missing(study.comparison, folder))
    with console.status("") as status:
        done: list[int] = []

        def advance(_: object = None) -> None:
            status.update(f"{name}: {len(done)} of {todo * arguments.rounds} rounds")
            done.append(1)

        failures = run_missing(study.comparison, folder, arguments.jobs, advance, lambda cell: None)
    runs = gather(study.comparison, lambda cell: folder.load(cell.experiment))
    made = rows(study.comparison, runs)
    data = arguments.page.with_suffix(".csv")
    put(data, SETTING, lines_of(name, made))
    lines = [f"## {study.title}", "", study.about, "", *_table(name, data, study.comparison), ""] if made else []
    for title, chart in study.pictures(study.comparison, runs, made).items() if made else ():
        file = f"{arguments.page.stem}-{name}-{file_name(title)}.svg"
        write_atomically(arguments.page.parent / file, standalone(chart).encode())
        lines += [f"![{title}]({file})", ""]
    return lines + [f"Not finished: {failure.cell.variant}: {failure.reason}" for failure in failures]


def lines_of(study: str, made: Sequence[Row]) -> Iterator[Line]:
    """A study's rows as lines of the data file."""
    for row in made:
        yield {
            "study": study,
            "variant": row.variant,
            "alpha": f"{row.alpha:g}",
            "size": row.size,
            **both("accuracy", row.accuracy),
            "megabytes_up": f"{row.megabytes_up:.1f}",
            "megabytes_down": f"{row.megabytes_down:.1f}",
            "training_gmacs": f"{row.gmacs:.1f}",
        }


def _table(study: str, data: Path, comparison: Comparison) -> list[str]:
    """The request for a table with a row for every variant and a column for every alpha, or for every size."""
    columns, heading = ("size", "{}") if len(comparison.sizes) > 1 else ("alpha", "α = {}")
    return [
        "<!-- table",
        f'file = "{data.name}"',
        f'where = {{study = "{study}"}}',
        'rows = "variant"',
        'labels = ["accuracy, %"]',
        f'columns = "{columns}"',
        f'heading = "{heading}"',
        'cells = "accuracy"',
        "-->",
    ]


def _head(arguments: argparse.Namespace) -> list[str]:
    root = " --data-root FOLDER" if arguments.data_root else ""
    some = len(arguments.studies) < len(studies({}, (0,)))
    command = (
        f"python examples/paper.py --dataset {arguments.dataset}{root} --images {arguments.images} "
        f"--rounds {arguments.rounds} --model {arguments.model} --seeds {arguments.seeds}"
    )
    command += " --whole-test-set" * arguments.whole_test_set + f" --studies {','.join(arguments.studies)}" * some
    tested = "the whole test set" if arguments.whole_test_set else f"{TESTED:,} test images at most"
    return [
        f"# The paper's tables and figures, small: {arguments.dataset}",
        "",
        f"`{command}`",
        "",
        f"{arguments.images:,} training images over 10 clients, {arguments.model}, {arguments.rounds} rounds of one "
        f"local epoch, {arguments.seeds} seed{'s' * (arguments.seeds > 1)}; accuracy on {tested}, mean of "
        "what was tested in the last five rounds. All methods see the same partition, weights and batches. MB are a "
        "whole run's and include sending the full model once more, to re-estimate batch-norm statistics. The paper has "
        "300 rounds, all of the data and larger networks: compare within a table, not with the paper's figures.",
        "",
    ]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    known = list(studies({}, (0,)))
    add("--dataset", default="fmnist", choices=DATASETS)
    add("--data-root", help="the data set's folder")
    add("--images", type=int, default=1000, help="training images")
    add("--whole-test-set", action="store_true", help=f"rather than {TESTED:,} images of it")
    add("--rounds", type=int, default=15)
    add("--model", default="resnet8", help="e.g. resnet8, vgg-small; the paper's are vgg16 and resnet32")
    add("--seeds", type=int, default=1)
    add("--studies", type=lambda text: text.split(","), default=known, help=f"some of {','.join(known)}")
    add("--jobs", type=int, default=1, help="processes")
    add("--threads", type=int, default=1, help="of each")
    add("--device", default="cpu")
    add("--out", type=Path, default=Path("runs/paper"), help="where finished runs are kept")
    add("--page", type=Path, help="the page to write, pictures beside it (default: runs/paper/DATASET.md)")
    arguments = parser.parse_args()
    arguments.page = arguments.page or Path("runs/paper") / f"{arguments.dataset}.md"
    for name in arguments.studies:
        if name not in known:
            parser.error(f"unknown study {name!r}; known: {', '.join(known)}")
    return arguments


if __name__ == "__main__":
    main()
