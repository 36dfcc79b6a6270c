"""``hfp compare``: several methods on the same data, seeds and weights; one table, curves and a page."""

from __future__ import annotations

import argparse
import shlex
from datetime import datetime
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from hfp.commands.arguments.compare import axes_of
from hfp.commands.arguments.settings import given_settings
from hfp.commands.interruption import status
from hfp.commands.printing import print_json
from hfp.comparison.definition import Cell, Comparison, comparison_from, read_comparison
from hfp.comparison.page import figures, page
from hfp.comparison.runs import ComparisonFolder, Failure, default_jobs, distinct, missing, run_missing
from hfp.comparison.table import Row, Runs, final_accuracy, gather, markdown, plain, rows, tables
from hfp.errors import InputError
from hfp.federation.setup import set_up

TABLE, PAGE = "table.md", "report.html"


def run(arguments: argparse.Namespace) -> int:
    """Run what is missing and report; 0 when all runs finished, 1 when some failed, 128 and the signal when stopped."""
    comparison = comparison_of(arguments)
    fresh = Path("runs") / f"{datetime.now():%Y%m%d-%H%M%S}-compare"
    folder = ComparisonFolder(arguments.out or fresh, comparison.threads, numbered=arguments.out is None)
    console = Console(stderr=arguments.json, highlight=False)
    todo = missing(comparison, folder)
    jobs = _jobs(arguments.jobs, todo, comparison.threads)
    if todo:
        set_up(todo[0].experiment)  # data, model and sizes are there, before a folder is made
    with folder.taken():
        folder.describe(comparison)
        failures: list[Failure] = []
        try:
            failures = _run(comparison, folder, todo, jobs, console, arguments.checkpoint)
        except KeyboardInterrupt as stop:
            go_on = f"hfp compare --resume {shlex.quote(str(folder.path))}"
            console.print(f"stopped; to go on: {go_on}", soft_wrap=True, markup=False)
            return status(stop)
        _report(comparison, folder, console, arguments.json)
    for failure in failures:
        console.print(f"failed: {failure.cell}: {failure.reason}", soft_wrap=True, markup=False)
    return 1 if failures else 0


def comparison_of(arguments: argparse.Namespace) -> Comparison:
    """Make the comparison that a file and the arguments describe.

    Raises:
        InputError: the file can't be read, or something in either is refused.
    """
    document = read_comparison(arguments.file) if arguments.file else {}
    document["experiment"] = {**document.get("experiment", {}), **given_settings(arguments)}
    axes = dict(document.get("compare", {}))
    given = axes_of(arguments)
    for one, other in (("ranks", "ratios"), ("ratios", "ranks")):
        if one in given:
            axes.pop(other, None)
    if arguments.budget is not None:
        axes.pop("ranks", None)
    axes.update(given)
    options = dict(document.get("options", {}))
    for method, name, value in arguments.method_options or ():
        options[method] = {**options.get(method, {}), name: value}
    return comparison_from({**document, "compare": axes, **({"options": options} if options else {})})


def _jobs(asked: int | None, todo: list[Cell], threads: int) -> int:
    return min(asked or default_jobs(todo, threads), max(len(todo), 1))


def _run(
    comparison: Comparison, folder: ComparisonFolder, todo: list[Cell], jobs: int, console: Console, every: int
) -> list[Failure]:
    total = len(distinct(comparison, folder))
    console.print(
        f"{total} runs of {len(comparison.variants)} variants, {total - len(todo)} done; {jobs} at a time, "
        f"{comparison.threads} thread{'s' * (comparison.threads > 1)} each",
        soft_wrap=True,
    )
    reasons = [reason for cell in todo if (reason := folder.outdated(cell.experiment))]
    if reasons:
        console.print(
            f"earlier results of {len(reasons)} of them don't count, because they were made with "
            f"{', '.join(sorted(set(reasons)))}; they are run again",
            soft_wrap=True,
        )
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TaskProgressColumn(), TimeRemainingColumn(), console=console, transient=True) as progress:
        rounds = progress.add_task("rounds", total=sum(cell.experiment.rounds for cell in todo))
        finished = progress.add_task("runs", total=len(todo))

        def on_run(cell: Cell) -> None:
            progress.advance(finished)
            result = folder.load(cell.experiment)
            reached = f"{final_accuracy(result):.1f} %" if result else "failed"
            progress.console.print(f"{cell}: {reached}", soft_wrap=True, markup=False)

        return run_missing(comparison, folder, jobs, lambda: progress.advance(rounds), on_run, every)


def _report(comparison: Comparison, folder: ComparisonFolder, console: Console, as_json: bool) -> None:
    runs = gather(comparison, lambda cell: folder.load(cell.experiment))
    made = rows(comparison, runs)
    for table in tables(made):
        console.print()
        console.print(table)
    if made:
        console.print(f"written to {folder.write(TABLE, markdown(made))}", soft_wrap=True, markup=False)
        _write_page(comparison, folder, runs, made, console)
    if as_json:
        print_json({"folder": str(folder.path), "rows": plain(made), "comparison": comparison.as_dict()})


def _write_page(
    comparison: Comparison, folder: ComparisonFolder, runs: Runs, made: list[Row], console: Console
) -> None:
    try:
        whole, charts = page(comparison, runs, made), figures(comparison, runs, made)
        console.print(f"written to {folder.write(PAGE, whole)}", soft_wrap=True, markup=False)
        folder.write_figures(charts)
    except InputError as problem:
        console.print(f"no page: {problem}", soft_wrap=True, markup=False)
