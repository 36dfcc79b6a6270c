"""Runs what a comparison lacks, in one process or several, and keeps every finished run."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import traceback
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hfp.atomic import clear_unfinished, write_atomically
from hfp.comparison.definition import Cell, Comparison
from hfp.comparison.identity import REASONS, Identities, plain
from hfp.comparison.workers import Lost, shared_out
from hfp.costs.machine import device_name
from hfp.errors import InputError, file_errors
from hfp.federation.experiment import Experiment
from hfp.federation.records import Run
from hfp.federation.rounds import Outcome
from hfp.federation.threads import cores
from hfp.results.checkpoint import load_checkpoint
from hfp.results.files import LOCK, has_checkpoint
from hfp.results.folder import locked, make_folder
from hfp.results.simulate import simulate

COMPARISON, RUNS, UNFINISHED, FIGURES = "comparison.json", "runs", "unfinished", "figures"
WRITTEN = f"{FIGURES}/written.json"
"""A hash of every picture that the last report wrote, by its file name."""

Result = dict[str, Any]
Progress = Callable[[], None]
_Task = tuple[Cell, Path | None, int]
"""A run, where it is kept until it is finished, and how many rounds pass between two times that it is saved there."""


class ComparisonFolder:
    """Keeps a comparison's description, and a file for every finished run.

    A run is known by its experiment and by what it was made with (`hfp.comparison.identity`): the content of its data,
    the number of threads, the version of hfp, a user's own code. Results that were made otherwise stay in the folder
    and are not shown.
    """

    def __init__(self, path: Path, threads: int = 1, *, numbered: bool = False) -> None:
        """Open a comparison's folder, or a new one; nothing is made yet.

        Args:
            path: the folder.
            threads: how many of the processor's threads each run computes with.
            numbered: whether a new folder is made, with a number behind its name where the name is taken.

        Raises:
            InputError: there is something else at `path`.
        """
        self.path, self.threads, self._numbered = path, threads, numbered
        self._identities = Identities(threads)
        with file_errors(f"output folder {path} can't be used"):
            used = not numbered and path.exists() and (not path.is_dir() or any(p.name != LOCK for p in path.iterdir()))
            if used and not (path / COMPARISON).is_file():
                raise InputError(f"{path} holds something that is no comparison; give another folder with --out")

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Make the folder, and keep other comparisons out of it while inside.

        Raises:
            InputError: it can't be made, or another comparison has it.
        """
        self.path = make_folder(self.path, numbered=self._numbered)
        with locked(self.path):
            clear_unfinished(self.path)
            yield

    def describe(self, comparison: Comparison) -> None:
        """Make the folder and write what is compared.

        Raises:
            InputError: the folder can't be made or written to.
        """
        with file_errors(f"output folder {self.path} can't be made"):
            (self.path / RUNS).mkdir(parents=True, exist_ok=True)
            clear_unfinished(self.path / RUNS)
            text = json.dumps(comparison.as_dict(), indent=2) + "\n"
            write_atomically(self.path / COMPARISON, text.encode())

    def load(self, experiment: Experiment) -> Result | None:
        """Return an experiment's result, or None if it has not been run or its file is damaged.

        Raises:
            InputError: the experiment's data can't be read, so that nothing tells whether a result is of it.
        """
        result = _read(self._file(experiment))
        if result is None or result.get("experiment") != plain(experiment):
            return None
        return result if result.get("made_with") == self._identities.made_with(experiment) else None

    def save(self, experiment: Experiment, result: Result) -> None:
        """Keep a result together with what it was made with; what was kept of the unfinished run goes.

        Raises:
            InputError: it can't be written.
        """
        result = {**result, "made_with": self._identities.made_with(experiment)}
        with file_errors(f"{self._file(experiment)} can't be written"):
            write_atomically(self._file(experiment), (json.dumps(result) + "\n").encode())
        shutil.rmtree(self.unfinished(experiment), ignore_errors=True)
        with suppress(OSError):  # others may be unfinished
            (self.path / UNFINISHED).rmdir()

    def unfinished(self, experiment: Experiment) -> Path:
        """Return the folder in which a run is kept until it is finished."""
        return self.path / UNFINISHED / self.key(experiment)

    def outdated(self, experiment: Experiment) -> str | None:
        """Say why results of the same experiment in the folder don't count; None if there are none."""
        wanted, made_with = plain(experiment), self._identities.made_with(experiment)
        reasons = set()
        for path in (self.path / RUNS).glob(f"{experiment.method}-*.json"):
            result = _read(path) or {}
            settings, found = result.get("experiment"), result.get("made_with")
            if not isinstance(settings, dict) or any(wanted.get(name) != value for name, value in settings.items()):
                continue
            if not isinstance(found, dict):
                reasons.add("no record of their data")
            elif found != made_with:
                reasons.update(why for name, why in REASONS.items() if found.get(name) != made_with.get(name))
        return " and ".join(sorted(reasons)) or None

    def write(self, name: str, text: str) -> Path:
        """Write a report into the folder; returns its path."""
        path = self.path / name
        path.parent.mkdir(exist_ok=True)
        write_atomically(path, text.encode())
        return path

    def write_figures(self, figures: Mapping[str, str]) -> None:
        """Write pictures by file name, and remove those of an earlier report that nobody has changed since."""
        old = _read(self.path / WRITTEN) or {}
        gone = old.keys() - figures.keys()
        for path in (self.path / FIGURES).glob("*.svg"):
            if path.name in gone and _hash(path.read_bytes()) == old[path.name]:
                path.unlink()
        self.write(WRITTEN, json.dumps({name: _hash(text.encode()) for name, text in figures.items()}) + "\n")
        for name, text in figures.items():
            self.write(f"{FIGURES}/{name}", text)

    def key(self, experiment: Experiment) -> str:
        """Return the name of an experiment's file, a hash of all that it is known by."""
        identity = json.dumps([plain(experiment), self._identities.made_with(experiment)], sort_keys=True).encode()
        return f"{experiment.method}-{_hash(identity)}"

    def _file(self, experiment: Experiment) -> Path:
        return self.path / RUNS / f"{self.key(experiment)}.json"


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _read(path: Path) -> Result | None:
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return result if isinstance(result, dict) else None


def result_of(run: Run) -> Result:
    """Turn a run that this process has finished into the plain values that a comparison keeps of it."""
    return {
        "experiment": plain(run.experiment),
        "device": device_name(run.experiment.device),
        "bytes_up": run.bytes_up,
        "bytes_down": run.bytes_down,
        "training_macs": run.training_macs,
        "device_seconds": run.device_seconds,
        "peak_bytes": run.peak_bytes,
        "parameters": run.parameters,
        "history": [{k: v for k, v in record.as_dict().items() if k != "clients"} for record in run.history],
    }


@dataclass(frozen=True)
class Failure:
    """A run that was not finished, and the reason."""

    cell: Cell
    reason: str


def default_jobs(cells: Sequence[Cell], threads: int = 1) -> int:
    """Choose the number of processes: as many as there are cores for if everything runs on the CPU, else one."""
    if any(cell.experiment.device != "cpu" for cell in cells):
        return 1
    return max(1, min(cores() // threads, len(cells)))


def run_missing(
    comparison: Comparison,
    folder: ComparisonFolder,
    jobs: int,
    on_round: Progress,
    on_run: Callable[[Cell], None],
    every: int = 0,
) -> list[Failure]:
    """Run what the folder doesn't have yet.

    Every run computes with the folder's number of threads, so its result does not depend on `jobs`. A run that fails,
    or whose process is killed, does not stop the others. When this is interrupted, finished runs are kept, and
    unfinished ones go on the next time from where they were saved.

    Args:
        comparison: what is compared.
        folder: where results are kept; it has been made by `describe`.
        jobs: how many processes run side by side; with 1 everything runs in this one.
        on_round: is called after every round of every run.
        on_run: is called after every run, finished or not.
        every: how many rounds pass between two times that a run's state is saved; 0 is never.

    Returns:
        The runs that were not finished, with the reasons.
    """
    tasks = [
        (cell, folder.unfinished(cell.experiment) if every else None, every) for cell in missing(comparison, folder)
    ]
    failures = []
    begin = _in_turn if jobs == 1 else _side_by_side
    with closing(begin(tasks, folder.threads, jobs, on_round)) as results:
        for cell, result in results:
            if isinstance(result, str):
                failures.append(Failure(cell, result))
            else:
                folder.save(cell.experiment, result)
            on_run(cell)
    return failures


def missing(comparison: Comparison, folder: ComparisonFolder) -> list[Cell]:
    """List the runs that have no result yet."""
    return [cell for cell in distinct(comparison, folder) if folder.load(cell.experiment) is None]


def distinct(comparison: Comparison, folder: ComparisonFolder) -> list[Cell]:
    """List the runs that a comparison takes: of cells that are the same experiment on the same data, the first."""
    first: dict[str, Cell] = {}
    for cell in comparison.cells():
        first.setdefault(folder.key(cell.experiment), cell)
    return list(first.values())


def _in_turn(
    tasks: Sequence[_Task], threads: int, _: int, on_round: Progress
) -> Generator[tuple[Cell, Result | str], None, None]:
    for cell, kept, every in tasks:
        with _threads(threads):
            result = _run(cell.experiment, on_round, kept, every)
        yield cell, result


def _side_by_side(
    tasks: Sequence[_Task], threads: int, jobs: int, on_round: Progress
) -> Generator[tuple[Cell, Result | str], None, None]:
    sent = [(cell.experiment.as_dict(), threads, kept, every) for cell, kept, every in tasks]
    with closing(shared_out(_work, sent, jobs, on_round)) as results:
        for number, result in results:
            yield tasks[number][0], result.reason if isinstance(result, Lost) else result


def _work(task: tuple[dict[str, Any], int, Path | None, int], on_round: Progress) -> Result | str:
    """Make one run, in a worker process."""
    settings, threads, kept, every = task
    try:
        experiment = Experiment(**settings)
    except InputError as error:  # a data set or method that only the process which started this one knows
        return f"{error}; take --jobs 1 for what is registered in Python"
    with _threads(threads):
        return _run(experiment, on_round, kept, every)


def _run(experiment: Experiment, on_round: Progress, kept: Path | None, every: int) -> Result | str:
    """Make a run; returns its result, or the reason why there is none. An unexpected error is printed as well."""

    def tell(_: Outcome) -> None:
        on_round()

    try:
        return result_of(simulate(experiment, tell, resume=kept, checkpoint=every))
    except InputError as error:
        return f"{error}; remove {kept} to start this run anew" if kept and _is_lost(kept) else str(error)
    except Exception as error:
        traceback.print_exc(file=sys.stderr)
        return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _is_lost(kept: Path) -> bool:
    """Whether there is a checkpoint and it can't be read."""
    try:
        return has_checkpoint(kept) and not load_checkpoint(kept)
    except InputError:
        return True


@contextmanager
def _threads(threads: int) -> Iterator[None]:
    """Compute with so many threads while inside."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
