"""``hfp run``: one federated experiment, shown while it runs and kept in a folder."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from hfp.commands.arguments.settings import given_settings
from hfp.commands.interruption import status
from hfp.commands.printing import print_json
from hfp.errors import InputError
from hfp.federation.experiment import Experiment
from hfp.federation.fleet import Fleet
from hfp.federation.jobs.fleet import fleet_of
from hfp.federation.observer import Observer
from hfp.federation.records import Run
from hfp.federation.rounds import Course
from hfp.federation.setup import Federation, set_up
from hfp.federation.threads import use_threads
from hfp.results.checkpoint import Checkpoint, check_settings, load_checkpoint
from hfp.results.display import Display
from hfp.results.files import has_checkpoint
from hfp.results.folder import RunFolder, default_folder, read_configuration
from hfp.results.keeping import RunFiles
from hfp.results.model_files import ModelFiles
from hfp.results.page import run_page
from hfp.results.plots import save_curves, save_diagnostics
from hfp.results.report import run_document, run_table
from hfp.results.tracking import TensorBoard, Trackio


def run(arguments: argparse.Namespace) -> int:
    """Run the experiment; 0 when it finished, 128 and the signal when it was interrupted (what was done is kept)."""
    console = Console(stderr=arguments.json, highlight=False)
    with contextlib.ExitStack() as held:
        _trackers(Path(), arguments)  # a missing package is noticed before anything is made
        if arguments.resume is None:
            start = _new(arguments)
        else:
            folder = _interrupted_run(arguments.resume)
            held.enter_context(folder.taken())
            start = _resumed(folder, arguments, console)
        federation = set_up(start.experiment)
        if start.checkpoint is not None:
            start.checkpoint.check(start.experiment, federation)
        use_threads(start.threads, federation)
        fleet = held.enter_context(fleet_of(federation, start.jobs))
        if arguments.resume is None:
            held.enter_context(start.folder.taken())  # nothing is made before it is known that the run can begin
        workers = start.jobs if start.jobs > 1 else 0
        start.folder.configure(start.experiment, {"threads": torch.get_num_threads(), "workers": workers})
        return _follow(federation, fleet, start, arguments, console)


@dataclass(frozen=True)
class _Start:
    """What a run starts from.

    Args:
        experiment: what is run.
        folder: where it is kept.
        jobs: how many clients train at once.
        threads: how many threads train each of them; None leaves the choice to `use_threads`.
        checkpoint: where the run goes on; None at its beginning.
    """

    experiment: Experiment
    folder: RunFolder
    jobs: int
    threads: int | None
    checkpoint: Checkpoint | None = None


def _new(arguments: argparse.Namespace) -> _Start:
    experiment = Experiment(**given_settings(arguments))
    numbered = arguments.out is None
    folder = RunFolder(default_folder(experiment) if numbered else arguments.out, numbered=numbered)
    return _Start(experiment, folder, min(arguments.jobs, experiment.clients), arguments.threads)


def _interrupted_run(path: Path) -> RunFolder:
    if not has_checkpoint(path) and read_configuration(path) is None:
        raise InputError(f"there is no run in {path}; give the folder that an interrupted run was written to")
    return RunFolder(path, resumed=True)


def _resumed(folder: RunFolder, arguments: argparse.Namespace, console: Console) -> _Start:
    """Load where an interrupted run stopped; without a checkpoint, its beginning.

    Raises:
        InputError: the run can't be resumed with these arguments.
    """
    found, checkpoint = read_configuration(folder.path), None
    if has_checkpoint(folder.path):
        checkpoint = load_checkpoint(folder.path, lambda text: console.print(text, soft_wrap=True, markup=False))
        before = checkpoint.experiment
    else:
        assert found is not None  # else it is no run's folder
        before = found[0]
        console.print("no checkpoint was written yet: the run starts anew", soft_wrap=True)
    experiment = dataclasses.replace(before, **given_settings(arguments))
    check_settings(experiment, before)
    jobs, threads = min(arguments.jobs, experiment.clients), arguments.threads
    return _Start(experiment, folder, jobs, _threads_before(found) if threads is None else threads, checkpoint)


def _threads_before(found: tuple[Experiment, Mapping[str, Any]] | None) -> int | None:
    """Return how many threads an interrupted run had, None where its configuration does not say."""
    threads = found[1].get("threads") if found else None
    return threads if isinstance(threads, int) and threads > 0 else None


def _follow(
    federation: Federation, fleet: Fleet, start: _Start, arguments: argparse.Namespace, console: Console
) -> int:
    """Run the rounds that are left, and report."""
    folder, rounds = start.folder, start.experiment.rounds
    models = ModelFiles(folder.path, save_clients=arguments.save_clients)
    files = RunFiles(folder, arguments.checkpoint, start.checkpoint)
    observers = [models, files, Display(console, start.jobs), *_trackers(folder.path, arguments)]
    course = Course(federation, fleet, start.checkpoint.run_state if start.checkpoint else None, observers)
    ended, to_go_on = 0, f"to go on: hfp run --resume {shlex.quote(str(folder.path))}"
    try:
        course.run()
    except KeyboardInterrupt as stop:
        ended = status(stop)
    except InputError as error:
        if not course.history:
            raise
        raise InputError(f"{error}; {len(course.history)} of {rounds} rounds are done; {to_go_on}") from error
    if not course.history:
        console.print("stopped before the first round ended; nothing to keep")
        return ended
    _close(course.result, federation.dataset.uneven, folder, console, arguments.json)
    if ended:
        console.print(f"stopped after {len(course.history)} of {rounds} rounds", soft_wrap=True)
        console.print(to_go_on, soft_wrap=True, markup=False)
    elif len(course.history) < rounds:
        console.print(f"ended after {len(course.history)} of {rounds} rounds: {course.ended}", soft_wrap=True)
    return ended


def _trackers(folder: Path, arguments: argparse.Namespace) -> list[Observer]:
    make = {"tensorboard": lambda: TensorBoard(folder / "tensorboard"), "trackio": lambda: Trackio(folder.name)}
    return [make[name]() for name in dict.fromkeys(arguments.track)]


def _close(run: Run, f1: bool, folder: RunFolder, console: Console, as_json: bool) -> None:
    console.print()
    console.print(run_table(run, f1))
    try:
        save_curves(run, folder.picture)
        if run.experiment.diagnostics:
            save_diagnostics(run, folder.diagnostics)
        folder.save_page(run_page(folder.path))
    except InputError as missing:
        console.print(f"no picture: {missing}", soft_wrap=True, markup=False)
    console.print(f"written to {folder.path}", soft_wrap=True, markup=False)
    if as_json:
        print_json(run_document(run, str(folder.path)))
