"""Tables I and II and figures 3 to 6 of arXiv 2603.12591, at the paper's size or at one that two cores can do.

    python examples/paper.py --dataset cifar10 --data-root FOLDER
    python examples/paper.py --dataset cifar10 --data-root FOLDER --size paper --device cuda

Runs the paper's four studies, and two of what each addition to its method is worth, one after the other. Every finished
run is kept (--out), and one that was stopped goes on from its last checkpoint when the command is started again. After
every run the figures are written to two data files beside the page: one with a line for each cell of a table, which
says "not run" where there is no run yet, and one with a line for each tested round of each run. A line gives way only
to one of as many seeds. At the end come the pictures and the page, of all that is in the data file. Of a page with text
of your own only the tables change.

At the size of two cores there are 6,000 training images, ResNet-20 and 60 rounds, and 2,000 test images, the same for
all. --methods and --alphas run a part of table I. With --tables accuracies are also written beside the paper's own.
"""

from __future__ import annotations

import argparse
import dataclasses
import glob
import hashlib
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, product
from pathlib import Path
from typing import Any

import custom_method  # noqa: F401  (makes delta-w known)
import torch
from rich.console import Console

from hfp.commands.arguments.checkpoint import check_checkpoint
from hfp.commands.arguments.parser import Parser
from hfp.commands.interruption import status
from hfp.comparison.definition import Cell, Comparison, Variant, variants_of
from hfp.comparison.page import file_name, round_chart, size_chart
from hfp.comparison.runs import ComparisonFolder, missing, run_missing
from hfp.comparison.table import Row, Runs, final_accuracy, gather, rows
from hfp.data import DataRequest, Dataset, Split, load_dataset, register_dataset
from hfp.errors import InputError
from hfp.federation.records import MEGABYTE
from hfp.federation.setup import set_up
from hfp.results.atomic import write_atomically
from hfp.results.charts import standalone
from hfp.results.folder import told

sys.path.insert(0, str(Path(__file__).parent / "benchmarks"))
from data_files import Line, both, put, read  # noqa: E402  (beside the benchmarks)
from render_pages import rendered  # noqa: E402

ALPHAS = (1.0, 0.1, 10.0)
TABLE_1 = ("fedavg", "ca-hfp", "ca-hfp-paper", "prunefl", "dapperfl", "heterofl", "fedmp", "fedprox", "fedavgm")
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
ADDITIONS = (
    Variant("ca-hfp", {"method": "ca-hfp"}),
    Variant("ca-hfp-paper", {"method": "ca-hfp-paper"}),
    Variant("shrink 0", {"method": "ca-hfp", "options": {"shrink": 0.0}}),
    Variant("shrink 0.4 in every round", {"method": "ca-hfp", "options": {"shrink_decays": False}}),
    Variant("server momentum 0", {"method": "ca-hfp", "options": {"server_momentum": 0.0}}),
    Variant("calibration 0", {"method": "ca-hfp", "options": {"calibration": 0.0}}),
    Variant("fedavg", {"method": "fedavg"}),
    Variant("fedavgm, calibration 0.05", {"method": "fedavgm", "options": {"calibration": 0.05}}),
)
UNEQUAL = (
    Variant("ca-hfp", {"method": "ca-hfp"}),
    Variant("shrink 0.4 in every round", {"method": "ca-hfp", "options": {"shrink_decays": False}}),
    Variant("fill", {"method": "ca-hfp", "options": {"rule": "fill"}}),
)
TESTED = 2000
SETTING = ("study", "variant", "alpha", "size")
OF_A_ROUND = ("study", "variant", "alpha", "size", "seed", "round")
PUBLISHED = ("study", "model", "dataset", "variant", "alpha", "paper")
OF_ALL = ("dataset", "train_images", "model", "rounds")
NOT_RUN = "not run"

PROTOCOL: Mapping[str, Any] = {
    "learning_rate": 0.1,
    "momentum": 0.9,
    "augment": True,
    "amp": True,
    "channels_last": True,
    "head_start": 1.0,
}
"""Settings that the paper states, rounds that are all alike among them; bfloat16 and channels last are ours."""

SIZES: Mapping[str, Mapping[str, Any]] = {
    "minutes": {"train_images": 1000, "model": "resnet8", "rounds": 12, "evaluate": 2, "head_start": 1.0},
    "two-cores": {"train_images": 6000, "model": "resnet20", "rounds": 60, "batch_size": 32, "evaluate": 5, **PROTOCOL},
    "paper": {"train_images": None, "model": "vgg16", "rounds": 300, "batch_size": 128, "evaluate": 10, **PROTOCOL},
}
"""Settings of the runs by the name of a size."""


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


def studies(
    base: Mapping[str, Any],
    seeds: tuple[int, ...],
    methods: Sequence[str] = TABLE_1,
    alphas: tuple[float, ...] = ALPHAS,
    threads: int = 1,
) -> dict[str, Study]:
    """The paper's experiments, by the name of a study. `methods` are table I's, `alphas` those of tables I and II."""

    def compared(variants: tuple[Variant, ...], **axes: Any) -> Comparison:
        return Comparison(variants, base, seeds=seeds, threads=threads, **axes)

    return {
        "table-1": Study(
            "Table I and figure 3: methods at half of the channels",
            "Every client removes 50 % of its channels.",
            compared(variants_of(methods), alphas=alphas, ratios=(0.5,)),
            _along_rounds,
        ),
        "table-2": Study(
            "Table II: scores, with and without reconstruction",
            "Half of the channels are removed. “Without”: what a client did not hold counts as zero in the mean.",
            compared(TABLE_2, alphas=alphas, ratios=(0.5,)),
            lambda *_: {},
        ),
        "additions": Study(
            "What each addition of the default method is worth",
            "Half of the channels are removed. Rows change one thing of ca-hfp; the last is FedAvg with its additions. "
            "All clients hold the same channels here, so that filling and the mean over holders are one.",
            compared(ADDITIONS, alphas=alphas, ratios=(0.5,)),
            lambda *_: {},
        ),
        "unequal": Study(
            "What two of the additions are worth where clients differ",
            "At rank 2 half of the clients remove 50 % of their channels and half 75 %, at rank 3 75 and 90 %.",
            compared(UNEQUAL, alphas=alphas, ranks=(2, 3)),
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
        if any(one == alpha for _, one, _ in runs)
    }


def _over_sizes(*titles: str) -> Callable[[Comparison, Runs, Sequence[Row]], dict[str, str]]:
    def draw(comparison: Comparison, _runs: Runs, made: Sequence[Row]) -> dict[str, str]:
        return {title: size_chart(comparison, made, comparison.alphas[0], title, legend=True) for title in titles}

    return draw


def main() -> None:
    """Run what is missing, then write the page; what can't be run is said in a line."""
    try:
        if _main(_arguments()):
            sys.exit(1)
    except InputError as error:
        print(f"paper.py: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as stop:
        print("paper.py: stopped; the same command goes on from here", file=sys.stderr)
        sys.exit(status(stop))


def _main(arguments: argparse.Namespace) -> int:
    """Do what the command line asks for; returns how many runs failed."""
    known, asked = _studies(arguments), chosen(arguments)
    _check_page(arguments)
    folder = ComparisonFolder(arguments.out / arguments.dataset, arguments.threads)  # one, so that studies share runs
    first = next((cell for comparison in asked.values() for cell in missing(comparison, folder)), None)
    if first is not None:
        set_up(first.experiment)  # data, model and device are there, before anything is written
    console, failures = Console(stderr=True, highlight=False), 0
    with folder.taken():
        for name, comparison in asked.items():
            failures += _run(name, known[name], comparison, folder, arguments, console)
    print(f"written to {arguments.page}{_write_page(known, arguments)}")
    return failures


def chosen(arguments: argparse.Namespace) -> dict[str, Comparison]:
    """What the command line asks for, by the name of a study."""
    found = _studies(arguments, arguments.methods, arguments.alphas)
    return {name: study.comparison for name, study in found.items() if name in arguments.studies}


def _studies(arguments: argparse.Namespace, *part: Any) -> dict[str, Study]:
    return studies(_base(arguments), tuple(range(arguments.seeds)), *part, threads=arguments.threads)


def _base(arguments: argparse.Namespace) -> dict[str, Any]:
    asked = {"train_images": arguments.images, "model": arguments.model, "rounds": arguments.rounds}
    base = {
        "dataset": arguments.dataset if _whole_test_set(arguments) else f"{arguments.dataset}-{TESTED}",
        "data_root": arguments.data_root,
        "download": arguments.download,
        "device": arguments.device,
        **SIZES[arguments.size],
        **{name: value for name, value in asked.items() if value is not None},
    }
    return {**base, "evaluate": min(base["evaluate"], base["rounds"])}


def _run(
    name: str,
    study: Study,
    asked: Comparison,
    folder: ComparisonFolder,
    arguments: argparse.Namespace,
    console: Console,
) -> int:
    """Run what is missing of a study, and write its figures whenever a run has ended; returns how many failed."""
    folder.describe(asked)
    _keep(name, study, asked, folder, arguments.page)
    todo = sum(cell.experiment.rounds for cell in missing(asked, folder))
    with console.status("") as shown:
        done: list[int] = []

        def advance() -> None:
            done.append(1)
            shown.update(f"{name}: {len(done)} of {todo} rounds")

        def keep(cell: Cell) -> None:
            result = folder.load(cell.experiment)
            reached = f"{final_accuracy(result):.1f} %" if result else "failed"
            console.print(f"{name}: {cell.variant}, alpha {cell.alpha:g}, {cell.size}, seed {cell.seed}: {reached}")
            _keep(name, study, asked, folder, arguments.page)

        failures = run_missing(asked, folder, arguments.jobs, advance, keep, arguments.checkpoint)
    for one in failures:
        console.print(f"{name}: {one.cell.variant} was not finished: {one.reason}", markup=False, soft_wrap=True)
    _draw(name, study, folder, arguments)
    return len(failures)


def _keep(name: str, study: Study, asked: Comparison, folder: ComparisonFolder, page: Path) -> None:
    """Write the figures of all runs of a study that there are, and what is missing of those asked for."""
    runs = gather(study.comparison, lambda cell: folder.load(cell.experiment))
    made = rows(study.comparison, runs)
    with told(f"the figures of {page} can't be written"):
        _put_new(page.with_suffix(".csv"), SETTING, lines_of(name, study.comparison, asked, made))
        _put_new(_file_of_rounds(page), OF_A_ROUND, rounds_of(name, study.comparison, runs))


def _draw(name: str, study: Study, folder: ComparisonFolder, arguments: argparse.Namespace) -> None:
    """Draw a study's pictures, and write what it reached beside the paper's own figures."""
    page, tables = arguments.page, arguments.tables
    runs = gather(study.comparison, lambda cell: folder.load(cell.experiment))
    made = rows(study.comparison, runs)
    with told(f"the pictures of {page} can't be written"):
        for title, chart in study.pictures(study.comparison, runs, made).items() if made else ():
            write_atomically(page.with_name(f"{page.stem}-{name}-{file_name(title)}.svg"), standalone(chart).encode())
    with told(f"{tables} can't be written"):
        lines = list(beside(read(tables), name, study.comparison, made)) if tables else []
        if lines:
            put(tables, PUBLISHED, lines)


def _file_of_rounds(page: Path) -> Path:
    return page.with_name(f"{page.stem}-rounds.csv")


def _put_new(file: Path, setting: Sequence[str], lines: Iterable[Line]) -> None:
    """Write the lines whose figures are new. A line of more seeds than the new one stays, as do figures as before."""
    known = {tuple(line[name] for name in setting): line for line in read(file)}
    new = []
    for line in lines:
        old = known.get(tuple(line[name] for name in setting))
        if old is None or (_seeds(line) >= _seeds(old) and _filled(line) != _filled(old)):
            new.append(line)
    if new:
        put(file, setting, new)


def _seeds(line: Line) -> int:
    return 0 if line["accuracy"] == NOT_RUN else int(line.get("seeds") or 1)


def _filled(line: Line) -> Line:
    return {name: value for name, value in line.items() if value and name not in ("commit", *OF_ALL)}


def _of_all(base: Mapping[str, Any]) -> Line:
    return {name: "all" if base[name] is None else str(base[name]) for name in OF_ALL}


def lines_of(study: str, comparison: Comparison, asked: Comparison, made: Sequence[Row]) -> Iterator[Line]:
    """A line of the data file for every cell of a study that has a result, or that is asked for."""
    found = {(row.variant, row.alpha, row.size): row for row in made}
    wanted = set(_cells(asked))
    for variant, alpha, size in _cells(comparison):
        row = found.get((variant, alpha, size))
        if row is None and (variant, alpha, size) not in wanted:
            continue
        line = {"study": study, "variant": variant, "alpha": f"{alpha:g}", "size": size}
        yield line | (_figures(row) if row else {"accuracy": NOT_RUN}) | _of_all(comparison.base)


def _cells(comparison: Comparison) -> Iterator[tuple[str, float, str]]:
    for alpha, (size, _), variant in product(comparison.alphas, comparison.sizes, comparison.variants):
        yield variant.name, alpha, size


def beside(published: Iterable[Line], study: str, comparison: Comparison, made: Sequence[Row]) -> Iterator[Line]:
    """The lines of the paper's own figures that a study reached something new for, with it and in how many rounds.

    A line with what more rounds or seeds reached stays.
    """
    base, found = comparison.base, {(row.variant, f"{row.alpha:g}"): row for row in made}
    for line in published:
        row = found.get((line["variant"], line["alpha"]))
        if row and (line["study"], line["model"], line["dataset"]) == (study, base["model"], base["dataset"]):
            reached = {**both("ours", row.accuracy), "rounds": str(base["rounds"]), "seeds": str(row.seeds)}
            before = {name: line.get(name) or "" for name in reached}
            fewer = any(int(before[name] or 0) > int(reached[name]) for name in ("rounds", "seeds"))
            if not fewer and before != reached:
                yield {**{name: line[name] for name in PUBLISHED}, **reached}


def _figures(row: Row) -> Line:
    return {
        **both("accuracy", row.accuracy),
        **both("difference", row.difference, "+.2f"),
        "seeds": str(row.seeds),
        "megabytes_up": f"{row.megabytes_up:.1f}",
        "megabytes_down": f"{row.megabytes_down:.1f}",
        "training_gmacs": f"{row.gmacs:.1f}",
    }


def rounds_of(study: str, comparison: Comparison, runs: Runs) -> Iterator[Line]:
    """A line of the data file for every tested round of every run."""
    for (variant, alpha, size), results in runs.items():
        for seed, result in results.items():
            up = list(accumulate(record["bytes_up"] for record in result["history"]))
            for record, sent in zip(result["history"], up, strict=True):
                if record["accuracy"] is not None:
                    yield {
                        "study": study,
                        "variant": variant,
                        "alpha": f"{alpha:g}",
                        "size": size,
                        "seed": str(seed),
                        "round": str(record["round"]),
                        "accuracy": f"{record['accuracy']:.2f}",
                        **{name: _loss(record[name]) for name in ("loss", "train_loss")},
                        "megabytes_up": f"{sent / MEGABYTE:.1f}",
                        "device": _device(comparison),
                    }


def _loss(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _device(comparison: Comparison) -> str:
    device = str(comparison.base["device"])
    return device if device == "cpu" else torch.cuda.get_device_name(device)


def _check_page(arguments: argparse.Namespace) -> None:
    """Refuse a page that can't be written, and figures beside it that are of something else."""
    page = arguments.page
    with told(f"page {page} can't be written"):
        if page.suffix != ".md" or page.is_dir():
            raise InputError(f"page must be a file whose name ends in .md; found {page}")
        page.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=page.parent).close()
        if page.exists():
            page.read_text(encoding="utf-8")
    if arguments.tables:
        with told(f"--tables: {arguments.tables} can't be read"):
            lines = read(arguments.tables)
        if not lines or not {*PUBLISHED, "ours"} <= lines[0].keys():
            raise InputError(f"--tables: there are no figures of the paper in {arguments.tables}")
    of_all = _of_all(_base(arguments))
    for file, setting in ((page.with_suffix(".csv"), SETTING), (_file_of_rounds(page), OF_A_ROUND)):
        with told(f"{file} can't be read"):
            lines = read(file)
        for line in lines:
            if not {*setting, "accuracy"} <= line.keys():
                raise InputError(f"{file} holds no figures of this command; give another page with --page")
            other = next((name for name, value in of_all.items() if line.get(name) not in (None, "", value)), None)
            if other:
                raise InputError(
                    f"the figures in {file} have {other} {line[other]}, and not {of_all[other]}; "
                    "give another page with --page"
                )


def _write_page(known: Mapping[str, Study], arguments: argparse.Namespace) -> str:
    """Write the page of all that is in the data file; returns what is to be said of it.

    Of a page with text that is not this command's only the tables change.
    """
    page = arguments.page
    with told(f"page {page} can't be written"):
        before = page.read_text(encoding="utf-8") if page.exists() else None
        if before is not None and before != _signed(before.rpartition(_SIGN)[0]):
            write_atomically(page, rendered(page).encode())
            return ": its tables alone, since its text is not this command's"
        lines = read(page.with_suffix(".csv"))
        text = "\n".join([*_head(arguments, lines), *_sections(known, page, lines)])
        write_atomically(page, _signed(rendered(page, text)).encode())
    return ""


_SIGN = "\n<!-- made by examples/paper.py, "


def _signed(text: str) -> str:
    return f"{text}{_SIGN}{hashlib.sha256(text.encode()).hexdigest()[:16]} -->\n"


def _sections(known: Mapping[str, Study], page: Path, lines: Sequence[Line]) -> Iterator[str]:
    """The parts of the page: a study's table, and the pictures of it that there are."""
    for name, study in known.items():
        if not any(line["study"] == name and line["accuracy"] != NOT_RUN for line in lines):
            continue
        data, start = page.with_suffix(".csv"), f"{page.stem}-{name}-"
        yield from (f"## {study.title}", "", study.about, "", *_table(name, data, study.comparison), "")
        for picture in sorted(page.parent.glob(f"{glob.escape(start)}*.svg")):
            title = picture.stem.removeprefix(start).replace("-", " ")
            yield from (f"![{title}]({picture.name})", "")


def _table(study: str, data: Path, comparison: Comparison) -> list[str]:
    """The request for a table with a row for every variant and a column for every alpha, or for every size."""
    columns, heading = ("size", "{}") if len(comparison.sizes) > 1 else ("alpha", "α = {}")
    by_alpha = columns == "size" and len(comparison.alphas) > 1
    return [
        "<!-- table",
        f'file = "{data.name}"',
        f'where = {{study = "{study}"}}',
        'rows = ["alpha", "variant"]' if by_alpha else 'rows = "variant"',
        'labels = ["α", "accuracy, %"]' if by_alpha else 'labels = ["accuracy, %"]',
        f'columns = "{columns}"',
        f'heading = "{heading}"',
        'cells = "accuracy"',
        "-->",
    ]


def _head(arguments: argparse.Namespace, lines: Sequence[Line]) -> list[str]:
    base, tested = _base(arguments), f"{TESTED:,} test images at most"
    images = "all" if base["train_images"] is None else f"{base['train_images']:,}"
    seeds = sorted({_seeds(line) for line in lines} - {0}) or [0]
    return [
        f"# What do the paper's tables look like on {arguments.dataset}, at the size of {arguments.size}?",
        "",
        "```",
        _command(arguments, lines),
        "```",
        "",
        f"There are {images} training images over 10 clients, {base['model']}, {base['rounds']} rounds of one local "
        f"epoch, and {' to '.join(map(str, seeds[:1] + seeds[1:][-1:]))} seed{'s' * (seeds[-1] > 1)}. Accuracy is on "
        f"{'the whole test set' if _whole_test_set(arguments) else tested}, as the mean of what was tested in the last "
        "five rounds. All methods see the same partition, weights and batches. Megabytes are a whole run's, and "
        "include that the full model is sent once more to estimate batch-norm statistics.",
        "",
    ]


def _command(arguments: argparse.Namespace, lines: Sequence[Line]) -> str:
    """The command that makes all of the page again."""
    usual = _parser().parse_args([])
    words = [f"--dataset {arguments.dataset}", "--data-root FOLDER" * (arguments.data_root is not None)]
    words += [f"--size {arguments.size}"]
    in_table_1 = {line["variant"] for line in lines if line["study"] == "table-1"}
    there = {
        "studies": tuple(name for name in usual.studies if any(line["study"] == name for line in lines)),
        "methods": tuple(name for name in usual.methods if name in in_table_1) or usual.methods,
        "alphas": tuple(one for one in usual.alphas if any(line["alpha"] == f"{one:g}" for line in lines)),
        "seeds": max(1, *map(_seeds, lines)),
    }
    for name in ("images", "rounds", "model", "seeds", "studies", "methods", "alphas"):
        value = there.get(name, getattr(arguments, name))
        if value != getattr(usual, name):
            shown = ",".join(map(_shown, value)) if isinstance(value, tuple) else value
            words.append(f"--{name} {shown}")
    words.append("--whole-test-set" * arguments.whole_test_set)
    return " ".join(["python examples/paper.py", *filter(None, words)])


def _whole_test_set(arguments: argparse.Namespace) -> bool:
    return bool(arguments.whole_test_set or arguments.size == "paper")


def _parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add, known = parser.add_argument, tuple(studies({}, (0,)))
    add("--dataset", default="fmnist", choices=DATASETS)
    add("--data-root", help="the data set's folder")
    add("--download", action="store_true", help="download the data set where it is missing")
    add("--size", default="two-cores", choices=SIZES)
    add("--images", type=int, help="training images, in place of the size's")
    add("--rounds", type=int, help="in place of the size's")
    add("--model", help="in place of the size's; the paper's are vgg16 and resnet32")
    add("--whole-test-set", action="store_true", help=f"test on more than {TESTED:,} images; the paper's size does so")
    add("--seeds", type=int, default=1, help="how many, from seed 0 on")
    add("--studies", type=_words, default=known, help=f"some of {','.join(known)}")
    add("--methods", type=_words, default=TABLE_1, help=f"run these of table I alone: {','.join(TABLE_1)}")
    add("--alphas", type=_numbers, default=ALPHAS, help="run these alone, in studies of several: 1,0.1,10")
    add("--jobs", type=int, default=1, help="processes")
    add("--threads", type=int, default=1, help="of each; results of another number do not count")
    add("--checkpoint", type=int, default=1, help="rounds between two times that a run is saved; 0 is never")
    add("--device", default="cpu")
    add("--out", type=Path, default=Path("runs/paper"), help="where finished runs are kept")
    add(
        "--tables",
        type=Path,
        help="a data file of the paper's figures, examples/paper/tables.csv: write ours beside them",
    )
    add("--page", type=Path, help="the page to write, pictures beside it (default: runs/paper/DATASET.md)")
    return parser


def _arguments() -> argparse.Namespace:
    parser = _parser()
    arguments = parser.parse_args()
    arguments.page = arguments.page or Path("runs/paper") / f"{arguments.dataset}.md"
    for name in ("seeds", "jobs"):
        if getattr(arguments, name) < 1:
            raise InputError(f"{name} must be at least 1; found {getattr(arguments, name)}")
    check_checkpoint(arguments)
    for what, given, known in (
        ("study", arguments.studies, parser.get_default("studies")),
        ("method of table I", arguments.methods, TABLE_1),
        ("alpha", arguments.alphas, ALPHAS),
    ):
        for one in given:
            if one not in known:
                raise InputError(f"unknown {what} {one!r}; known: {', '.join(map(_shown, known))}")
            if given.count(one) > 1:
                raise InputError(f"{what} {one!r} is given {given.count(one)} times")
    return arguments


def _shown(one: str | float) -> str:
    return f"{one:g}" if isinstance(one, float) else one


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(word) for word in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected numbers with commas between them; found {text!r}") from None


if __name__ == "__main__":
    main()
