"""``hfp compare``: several methods on the same data, seeds and weights; one table, curves and a page."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from hfp.commands.run import INTERRUPTED, add_settings, given_settings, option
from hfp.comparison.definition import Cell, Comparison, comparison_from, read_comparison
from hfp.comparison.page import figures, page
from hfp.comparison.runs import COMPARISON, ComparisonFolder, Failure, default_jobs, distinct, missing, run_missing
from hfp.comparison.table import final_accuracy, gather, markdown, plain, rows, tables
from hfp.errors import InputError
from hfp.federation.setup import set_up
from hfp.federation.threads import use_threads
from hfp.methods import methods

TABLE, PAGE, FIGURES = "table.md", "report.html", "figures"

_T = TypeVar("_T")


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``hfp compare``; a file is read first, arguments go over it."""
    add = parser.add_argument
    add("--file", type=Path, metavar="TOML", help="the comparison as a file; or the comparison.json of an earlier one")
    add("--methods", type=_list(str), metavar="M[,M…]", help="the first is what others differ from (default: all)")
    add("--seeds", type=_seeds, metavar="N", help="how many, or a list: 0,1,5; seed 4 alone: 4, (default: 3)")
    add("--alpha", dest="alphas", type=_list(float), metavar="A[,A…]", help="Dirichlet concentrations (default: 1)")
    add("--rank", dest="ranks", type=_list(int), metavar="R[,R…]", help="pairs of ratios, 0 to 3 (default: 1)")
    add("--ratio", dest="ratios", type=_list(float), metavar="R[,R…]", help="shares of channels removed, over --rank")
    add("--batch-norm", dest="batch_norms", type=_list(str), metavar="P[,P…]", help="policies, side by side")
    add(
        "--option",
        dest="method_options",
        action="append",
        type=_option,
        metavar="METHOD.NAME=VALUE",
        help="of a method",
    )
    add(
        "--target",
        type=float,
        metavar="PERCENT",
        help="accuracy that costs are counted to (default: 90 %% of the best)",
    )
    add("--jobs", type=int, metavar="N", help="processes (default: one a core on the CPU)")
    add("--out", type=Path, metavar="FOLDER", help="a new folder, or an earlier comparison's: finished runs are kept")
    add("--json", action="store_true", help="print one JSON document; progress goes to standard error")
    add_settings(
        parser.add_argument_group("all runs"),
        without=("--method", "--seed", "--alpha", "--rank", "--ratio", "--batch-norm"),
    )


def run(arguments: argparse.Namespace) -> int:
    """Run what is missing and report; 0 when all runs finished, 1 when some failed, 130 when interrupted."""
    comparison = comparison_of(arguments)
    folder = ComparisonFolder(arguments.out or Path("runs") / f"{datetime.now():%Y%m%d-%H%M%S}-compare")
    console = Console(stderr=arguments.json, highlight=False)
    todo = missing(comparison, folder)
    jobs = _jobs(arguments.jobs, todo)
    if todo:
        federation = set_up(todo[0].experiment)  # data, model and sizes are there, before a folder is made
        use_threads(None, federation)
    folder.describe(comparison)
    failures: list[Failure] = []
    try:
        failures = _run(comparison, folder, todo, jobs, console)
    except KeyboardInterrupt:
        resume = f"hfp compare --file {folder.path / COMPARISON} --out {folder.path}"
        console.print(f"stopped; to go on: {resume}", soft_wrap=True, markup=False)
        return INTERRUPTED
    _report(comparison, folder, console, arguments.json)
    for failure in failures:
        cell = failure.cell
        where = f"{cell.variant}, seed {cell.seed}, {cell.size}, alpha {cell.alpha:g}"
        console.print(f"failed: {where}: {failure.reason}", soft_wrap=True, markup=False)
    return 1 if failures else 0


def comparison_of(arguments: argparse.Namespace) -> Comparison:
    """The comparison that a file and the arguments describe.

    Raises:
        InputError: the file can't be read, or something in either is refused.
    """
    document: dict[str, Any] = dict(read_comparison(arguments.file)) if arguments.file else {}
    document["experiment"] = {**document.get("experiment", {}), **given_settings(arguments)}
    axes = dict(document.get("compare", {}))
    for given, other in (("ranks", "ratios"), ("ratios", "ranks")):
        if getattr(arguments, given) is not None:
            axes.pop(other, None)
    for name in ("methods", "seeds", "alphas", "ranks", "ratios", "batch_norms", "target"):
        if getattr(arguments, name) is not None:
            axes[name] = getattr(arguments, name)
    options = {method: dict(entries) for method, entries in document.get("options", {}).items()}
    for method, name, value in arguments.method_options or ():
        options.setdefault(method, {})[name] = value
    return comparison_from({**document, "compare": axes, **({"options": options} if options else {})})


def _jobs(asked: int | None, todo: list[Cell]) -> int:
    if asked is not None and asked < 1:
        raise InputError(f"jobs must be at least 1; found {asked}")
    return min(asked or default_jobs(todo), max(len(todo), 1))


def _run(
    comparison: Comparison, folder: ComparisonFolder, todo: list[Cell], jobs: int, console: Console
) -> list[Failure]:
    total = len(distinct(comparison))
    console.print(
        f"{total} runs of {len(comparison.variants)} variants, {total - len(todo)} done; {jobs} at a time",
        soft_wrap=True,
    )
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TaskProgressColumn(), TimeRemainingColumn(), console=console, transient=True) as progress:
        rounds = progress.add_task("rounds", total=sum(cell.experiment.rounds for cell in todo))
        finished = progress.add_task("runs", total=len(todo))

        def on_run(cell: Cell) -> None:
            progress.advance(finished)
            where = f"{cell.variant}, seed {cell.seed}, {cell.size}, alpha {cell.alpha:g}"
            result = folder.load(cell.experiment)
            reached = f"{final_accuracy(result):.1f} %" if result else "failed"
            progress.console.print(f"{where}: {reached}", soft_wrap=True)

        return run_missing(comparison, folder, jobs, lambda: progress.advance(rounds), on_run)


def _report(comparison: Comparison, folder: ComparisonFolder, console: Console, as_json: bool) -> None:
    runs = gather(comparison, lambda cell: folder.load(cell.experiment))
    made = rows(comparison, runs)
    if not made:
        return
    for table in tables(made):
        console.print()
        console.print(table)
    console.print(f"written to {folder.write(TABLE, markdown(made))}", soft_wrap=True, markup=False)
    try:
        whole, charts = page(comparison, runs, made), figures(comparison, runs, made)
        console.print(f"written to {folder.write(PAGE, whole)}", soft_wrap=True, markup=False)
        for name, chart in charts.items():
            folder.write(f"{FIGURES}/{name}", chart)
    except InputError as problem:
        console.print(f"no page: {problem}", soft_wrap=True, markup=False)
    if as_json:
        json.dump({"folder": str(folder.path), "rows": plain(made), "comparison": comparison.as_dict()}, sys.stdout)
        sys.stdout.write("\n")


def _list(kind: Callable[[str], _T]) -> Callable[[str], list[_T]]:
    def parse(text: str) -> list[_T]:
        return [kind(part) for part in text.split(",")]

    parse.__name__ = f"list of {kind.__name__}"  # argparse names the type in its message
    return parse


def _seeds(text: str) -> int | list[int]:
    return _list(int)(text.removesuffix(",")) if "," in text else int(text)


def _option(text: str) -> tuple[str, str, Any]:
    name, value = option(text)
    method, dot, own = name.partition(".")
    known = [entry.name.replace("-", "_") for entry in methods()]
    if not dot or method not in known:
        raise argparse.ArgumentTypeError(f"expected METHOD.NAME=VALUE; found {text!r}")
    return methods()[known.index(method)].name, own, value


_seeds.__name__ = "seeds"
