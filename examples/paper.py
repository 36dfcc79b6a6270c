"""Tables I and II and figures 3 to 6 of arXiv 2603.12591, at the paper's size or at one that two cores can do.

    python examples/paper.py --dataset cifar10 --data-root FOLDER
    python examples/paper.py --dataset cifar10 --data-root FOLDER --size paper --device cuda

Runs the paper's four studies, three of what each addition to its method is worth, and one that asks whether a fixed
small network does as well, one after the other. Every finished run is kept (--out), and one that was stopped goes on
from its last checkpoint when the command is started again. After every run the figures are written to two data files
beside the page: one with a line for each cell of a table, which says "not run" where there is no run yet, and one with
a line for each tested round of each run. A line gives way only to one of as many seeds. At the end come the pictures
and the page, of all that is in the data file. Of a page with text of your own only the tables change.

At the size of two cores there are 6,000 training images, ResNet-20 and 60 rounds, and 2,000 test images, the same for
all. --methods and --alphas run a part of table I. With --tables accuracies are also written beside the paper's own.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from paper_tables.lines import Line, check_files, check_tables, put_beside, put_found, seeds_of
from paper_tables.page import draw, write_page
from paper_tables.studies import ALPHAS, DATASETS, SIZES, TABLE_1, TESTED, Study, studies
from rich.console import Console

from hfp.commands.arguments.checkpoint import check_checkpoint
from hfp.commands.arguments.parser import Parser
from hfp.commands.interruption import status
from hfp.comparison.definition import Cell, Comparison
from hfp.comparison.runs import ComparisonFolder, missing, run_missing
from hfp.comparison.table import Row, Runs, final_accuracy, gather, rows
from hfp.errors import InputError, file_errors
from hfp.federation.setup import set_up


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
    said = write_page(arguments.page, known, lambda lines: _head(arguments, lines))
    print(f"written to {arguments.page}{said}")
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
    put_found(arguments.page, name, study.comparison, asked, *_gathered(study, folder))
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
            put_found(arguments.page, name, study.comparison, asked, *_gathered(study, folder))

        failures = run_missing(asked, folder, arguments.jobs, advance, keep, arguments.checkpoint)
    for one in failures:
        console.print(f"{name}: {one.cell.variant} was not finished: {one.reason}", markup=False, soft_wrap=True)
    runs, made = _gathered(study, folder)
    draw(arguments.page, name, study, runs, made)
    if arguments.tables:
        put_beside(arguments.tables, name, study.comparison, made)
    return len(failures)


def _gathered(study: Study, folder: ComparisonFolder) -> tuple[Runs, Sequence[Row]]:
    runs = gather(study.comparison, lambda cell: folder.load(cell.experiment))
    return runs, rows(study.comparison, runs)


def _check_page(arguments: argparse.Namespace) -> None:
    """Refuse a page that can't be written, and figures beside it that are of something else."""
    page = arguments.page
    with file_errors(f"page {page} can't be written"):
        if page.suffix != ".md" or page.is_dir():
            raise InputError(f"page must be a file whose name ends in .md; found {page}")
        page.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=page.parent).close()
        if page.exists():
            page.read_text(encoding="utf-8")
    base = _base(arguments)
    if arguments.tables:
        if _whole_test_set(arguments) and base["train_images"] is not None:
            raise InputError(
                f"--tables: the paper trains on all images; found {base['train_images']:,}: "
                "give --size paper without --images"
            )
        if not check_tables(arguments.tables, arguments.studies, base):
            print(
                f"--tables: no figure in {arguments.tables} is of {base['model']} on {base['dataset']} in "
                f"{','.join(arguments.studies)}; nothing is written there"
            )
    check_files(page, base)


def _head(arguments: argparse.Namespace, lines: Sequence[Line]) -> list[str]:
    base, tested = _base(arguments), f"{TESTED:,} test images at most"
    images = "all" if base["train_images"] is None else f"{base['train_images']:,}"
    seeds = sorted({seeds_of(line) for line in lines} - {0}) or [0]
    return [
        f"# What do the paper's tables look like on {arguments.dataset}, at the size of {arguments.size}?",
        "",
        "```",
        _command(arguments, lines),
        "```",
        "",
        f"There are {images} training images over 10 clients, {base['model']}, {base['rounds']} "
        f"round{'s' * (base['rounds'] > 1)} of one local epoch, and "
        f"{' to '.join(map(str, seeds[:1] + seeds[1:][-1:]))} seed{'s' * (seeds[-1] > 1)}. Accuracy is on "
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
        "seeds": max(1, *map(seeds_of, lines)),
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
