"""Runs a whole experiment in this process, and keeps it in a folder where one is given."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from hfp.federation.experiment import Experiment
from hfp.federation.observer import Observer
from hfp.federation.records import Run
from hfp.federation.rounds import Course, Outcome
from hfp.federation.setup import set_up
from hfp.results.checkpoint import load_checkpoint
from hfp.results.display import Display
from hfp.results.files import has_checkpoint
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
) -> Run:
    """Run a whole experiment in this process.

    Args:
        experiment: what is run.
        on_round: is called with every round's outcome, which an observer's `round_ended` does too.
        observers: are told what happens (`hfp.Observer`).
        resume: a folder that the run is kept in. An interrupted run of the same experiment in it goes on, and ends as
            it would have without the interruption. In an empty or missing folder a run starts. By default nothing is
            written.
        checkpoint: the run's state is saved in the folder after every so many rounds; with 0 it is never saved.
        progress: show rounds as they end, on standard error or below a notebook's cell.

    Returns:
        The finished run, with all rounds of its history.

    Raises:
        InputError: the experiment can't be set up, all clients of a round failed, or the folder can't be used.

    >>> import hfp
    >>> run = hfp.simulate(hfp.Experiment(method="fedavg", clients=2, train_images=40, rounds=1, head_start=1.0))
    >>> len(run.history)
    1
    """
    shown = [Display(Console(stderr=True, highlight=False))] if progress else []
    told = [*observers, *shown, *([_Calls(on_round)] if on_round is not None else [])]
    if resume is None:
        return Course(set_up(experiment), observers=told).run()
    path = Path(resume)
    folder = RunFolder(path, resumed=has_checkpoint(path) or read_configuration(path) is not None)
    with folder.taken():
        before = load_checkpoint(path) if has_checkpoint(path) else None
        if before is not None:
            before.check(experiment)
        federation = set_up(experiment)
        if before is not None:
            before.check(experiment, federation)
        folder.configure(experiment)
        run_state = before.run_state if before else None
        kept = [ModelFiles(path), RunFiles(folder, checkpoint)]
        return Course(federation, run_state=run_state, observers=[*kept, *told]).run()


class _Calls(Observer):
    """Calls a function with every round's outcome."""

    def __init__(self, function: Callable[[Outcome], None]) -> None:
        self._function = function

    def round_ended(self, outcome: Outcome) -> None:
        self._function(outcome)
