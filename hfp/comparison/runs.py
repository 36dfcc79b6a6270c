"""Runs a comparison: what is missing, over processes, every finished run kept."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from hfp.comparison.definition import Cell, Comparison
from hfp.errors import InputError
from hfp.federation.experiment import Experiment
from hfp.federation.records import Run
from hfp.federation.rounds import Outcome
from hfp.methods import create_method
from hfp.results.atomic import clear_unfinished, write_atomically
from hfp.results.folder import LOCK, locked, make_folder, told
from hfp.results.simulate import simulate

COMPARISON, RUNS, UNFINISHED = "comparison.json", "runs", "unfinished"

Result = dict[str, Any]
Progress = Callable[[], None]


class ComparisonFolder:
    """Keeps a comparison's description and one file for every finished run, by what the run was."""

    def __init__(self, path: Path, *, numbered: bool = False) -> None:
        """Open a comparison's folder, or a new one; nothing is made yet. A `numbered` one gets a name that is free.

        Raises:
            InputError: there is something else at `path`.
        """
        self.path, self._numbered = path, numbered
        with told(f"output folder {path} can't be used"):
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
        with told(f"output folder {self.path} can't be made"):
            (self.path / RUNS).mkdir(parents=True, exist_ok=True)
            clear_unfinished(self.path / RUNS)
            text = json.dumps(comparison.as_dict(), indent=2) + "\n"
            write_atomically(self.path / COMPARISON, text.encode())

    def load(self, experiment: Experiment) -> Result | None:
        """The result of an experiment that has been run; None for one that hasn't, or whose file is damaged."""
        try:
            result = json.loads(self._file(experiment).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        known = result.get("experiment") if isinstance(result, dict) else None
        return result if known == _plain(experiment) else None

    def save(self, experiment: Experiment, result: Result) -> None:
        """Keep a result; what was kept of the run while it was unfinished goes.

        Raises:
            InputError: it can't be written.
        """
        with told(f"{self._file(experiment)} can't be written"):
            write_atomically(self._file(experiment), (json.dumps(result) + "\n").encode())
        shutil.rmtree(self.unfinished(experiment), ignore_errors=True)
        with suppress(OSError):  # others may be unfinished
            (self.path / UNFINISHED).rmdir()

    def unfinished(self, experiment: Experiment) -> Path:
        """Where a run is kept until it is finished."""
        return self.path / UNFINISHED / _key(experiment)

    def write(self, name: str, text: str) -> Path:
        """Write a report; returns where it is."""
        path = self.path / name
        path.parent.mkdir(exist_ok=True)
        write_atomically(path, text.encode())
        return path

    def _file(self, experiment: Experiment) -> Path:
        return self.path / RUNS / f"{_key(experiment)}.json"


def _plain(experiment: Experiment) -> dict[str, Any]:
    """What identifies a run: its experiment with all of the method's options, without where the data lies."""
    values = {name: v for name, v in experiment.as_dict().items() if name not in ("data_root", "download")}
    method = create_method(experiment.method, **experiment.options)
    options = {entry.name: getattr(method, entry.name) for entry in dataclasses.fields(method)}  # type: ignore[arg-type]
    return json.loads(json.dumps({**values, "options": options}))


def _key(experiment: Experiment) -> str:
    plain = json.dumps(_plain(experiment), sort_keys=True).encode()
    return f"{experiment.method}-{hashlib.sha256(plain).hexdigest()[:16]}"


def result_of(run: Run) -> Result:
    """A finished run as a comparison keeps it."""
    return {
        "experiment": _plain(run.experiment),
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
    """A run that could not be finished, and why."""

    cell: Cell
    reason: str


def default_jobs(cells: Sequence[Cell]) -> int:
    """One process a core where everything runs on the CPU, else one."""
    if any(cell.experiment.device != "cpu" for cell in cells):
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, len(cells)))


def run_missing(
    comparison: Comparison,
    folder: ComparisonFolder,
    jobs: int,
    on_round: Progress,
    on_run: Callable[[Cell], None],
    every: int = 0,
) -> list[Failure]:
    """Run what the folder doesn't have yet; `on_round` is called after every round, `on_run` after every run.

    When this is interrupted, finished runs are kept, and unfinished ones go on the next time from where they were
    saved, which is after `every` rounds; 0 is never.
    """
    jobs_of = [(cell, folder.unfinished(cell.experiment) if every else None) for cell in missing(comparison, folder)]
    failures = []
    results = _in_turn(jobs_of, every, on_round) if jobs == 1 else _side_by_side(jobs_of, every, jobs, on_round)
    for cell, result in results:
        if isinstance(result, str):
            failures.append(Failure(cell, result))
        else:
            folder.save(cell.experiment, result)
        on_run(cell)
    return failures


def missing(comparison: Comparison, folder: ComparisonFolder) -> list[Cell]:
    """The runs that have no result yet."""
    return [cell for cell in distinct(comparison) if folder.load(cell.experiment) is None]


def distinct(comparison: Comparison) -> list[Cell]:
    """The runs that a comparison takes: one of those cells that are the same experiment."""
    first: dict[str, Cell] = {}
    for cell in comparison.cells():
        first.setdefault(_key(cell.experiment), cell)
    return list(first.values())


def _in_turn(
    cells: Sequence[tuple[Cell, Path | None]], every: int, on_round: Progress
) -> Iterable[tuple[Cell, Result | str]]:
    for cell, kept in cells:
        yield cell, _run(cell.experiment, lambda _: on_round(), kept, every)


def _run(experiment: Experiment, on_round: Callable[[Outcome], None], kept: Path | None, every: int) -> Result | str:
    try:
        return result_of(simulate(experiment, on_round, resume=kept, checkpoint=every))
    except InputError as error:
        return str(error)


def _side_by_side(
    cells: Sequence[tuple[Cell, Path | None]], every: int, jobs: int, on_round: Progress
) -> Iterable[tuple[Cell, Result | str]]:
    """Results as they come from processes of one thread each; an interruption stops them at their next round."""
    context = get_context("spawn")
    events, stop = context.SimpleQueue(), context.Event()
    listener = threading.Thread(target=_listen, args=(events, on_round), daemon=True)
    listener.start()
    with ProcessPoolExecutor(jobs, context, initializer=_begin, initargs=(events, stop)) as pool:
        with _ignored_by_children():
            futures = {pool.submit(_work, cell.experiment.as_dict(), kept, every): cell for cell, kept in cells}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise
        finally:
            events.put(None)
    listener.join()


@contextmanager
def _ignored_by_children() -> Iterator[None]:
    """Processes started inside leave interruptions to this one, from their first moment on."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    names = [name for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    handlers = {number: signal.signal(number, signal.SIG_IGN) for number in (getattr(signal, n) for n in names)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _listen(events: Any, on_round: Progress) -> None:
    while events.get() is not None:
        on_round()


_events: Any = None
_stop: Any = None


def _begin(events: Any, stop: Any) -> None:
    """In a new process: compute with one thread."""
    global _events, _stop
    _events, _stop = events, stop
    torch.set_num_threads(1)


class _Stopped(Exception):
    """The parent wants no more."""


def _work(settings: dict[str, Any], kept: Path | None, every: int) -> Result | str:
    def tell(_: Outcome) -> None:
        _events.put(1)
        if _stop.is_set():
            raise _Stopped

    return _run(Experiment(**settings), tell, kept, every)
