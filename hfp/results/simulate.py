"""Runs a whole experiment on this machine, and keeps it in a folder where one is given."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from hfp.errors import InputError
from hfp.federation.experiment import Experiment
from hfp.federation.jobs.check import check_jobs
from hfp.federation.jobs.fleet import fleet_of
from hfp.federation.observer import Observer
from hfp.federation.records import Run
from hfp.federation.rounds import Course, Outcome
from hfp.federation.setup import set_up
from hfp.results.checkpoint import check_settings, load_checkpoint
from hfp.results.display import Display
from hfp.results.files import METRICS, has_checkpoint
from hfp.results.folder import RunFolder, read_configuration
from hfp.results.keeping import RunFiles
from hfp.results.model_files import ModelFiles


def simulate(
    experiment: Experiment,
    on_round: Callable[[Outcome], None] | None = None,
    *,
    observers: Sequence[Observer] = (),
    resume: str | os.PathLike[str] | None = None,
    checkpoint: int = 1,
    progress: bool = False,
    jobs: int = 1,
) -> Run:
    """Run a whole experiment on this machine.

    Args:
        experiment: what is run.
        on_round: is called with every round's outcome, which an observer's `round_ended` does too.
        observers: are told what happens (`hfp.Observer`).
        resume: a folder that the run is kept in. An interrupted run of the same experiment in it goes on, and ends as
            it would have without the interruption. In an empty or missing folder a run starts. By default nothing is
            written.
        checkpoint: the run's state is saved in the folder after every so many rounds; with 0 it is never saved.
        progress: show rounds as they end, on standard error or below a notebook's cell.
        jobs: this many clients train at once on the processor, each in a process of its own; with 1 all train in this
            process. No more processes are started than there are clients. Results are the same to the last bit.

    Returns:
        The finished run, with all rounds of its history.

    Raises:
        InputError: the experiment can't be set up or can't be sent to other processes, an observer is none, all clients
            of a round failed, or the folder can't be used or has rounds of another experiment.

    >>> import hfp
    >>> run = hfp.simulate(hfp.Experiment(method="fedavg", clients=2, train_images=40, rounds=1, head_start=1.0))
    >>> len(run.history)
    1
    """
    check_jobs(jobs, experiment.device)
    jobs = min(jobs, experiment.clients)
    shown = [Display(Console(stderr=True, highlight=False), jobs)] if progress else []
    _check(observers)
    told = [*observers, *shown, *([_Calls(on_round)] if on_round is not None else [])]
    if resume is None:
        federation = set_up(experiment)
        with fleet_of(federation, jobs) as fleet:
            return Course(federation, fleet, observers=told).run()
    path = Path(resume)
    found = read_configuration(path)
    folder = RunFolder(path, resumed=has_checkpoint(path) or found is not None)
    with folder.taken():
        before = load_checkpoint(path) if has_checkpoint(path) else None
        if before is not None:
            before.check(experiment)
        elif found is not None and (path / METRICS).exists():
            check_settings(experiment, found[0])
        federation = set_up(experiment)
        if before is not None:
            before.check(experiment, federation)
        run_state = before.run_state if before else None
        kept = [ModelFiles(path), RunFiles(folder, checkpoint, before)]
        with fleet_of(federation, jobs) as fleet:
            folder.configure(experiment)
            return Course(federation, fleet, run_state, [*kept, *told]).run()


def _check(observers: Sequence[Observer]) -> None:
    for observer in observers:
        if isinstance(observer, type):
            raise InputError(f"observers are objects; found the class {observer.__name__}: give {observer.__name__}()")
        if not isinstance(observer, Observer):
            raise InputError(f"observers are of classes that derive from hfp.Observer; found {type(observer).__name__}")


class _Calls(Observer):
    """Calls a function with every round's outcome."""

    def __init__(self, function: Callable[[Outcome], None]) -> None:
        self._function = function

    def round_ended(self, outcome: Outcome) -> None:
        self._function(outcome)
