"""The ServerApp, ``hfp.flower.server:app``, which runs an experiment on Flower's nodes with a checkpoint per round."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from hfp.errors import InputError
from hfp.federation.experiment import Experiment
from hfp.federation.observer import Observer
from hfp.federation.problem import load_problem
from hfp.federation.records import Run
from hfp.federation.rounds import Course, Outcome
from hfp.federation.setup import Federation, set_up, set_up_own
from hfp.federation.threads import use_threads
from hfp.flower.experiments import experiment_from
from hfp.flower.fleet import Flower
from hfp.flower.nodes import Nodes
from hfp.flower.settings import Settings, problem_file, settings_from
from hfp.results.checkpoint import Checkpoint, load_checkpoint
from hfp.results.folder import RunFolder, default_folder
from hfp.results.keeping import RunFiles
from hfp.results.model_files import ModelFiles
from hfp.results.page import run_page
from hfp.results.plots import save_curves
from hfp.results.report import round_line

CLIENT_LINE = "  client {client}: {status}{problem}"

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the experiment of the run's configuration.

    Raises:
        InputError: the configuration can't be used, or there were too few nodes; what was done is kept.
    """
    try:
        run(grid, experiment_from(context.run_config), settings_from(context.run_config))
    except InputError as error:
        _say(f"stopped: {error}")
        raise error.with_traceback(None) from None  # Flower shows it and marks the run as failed


def run(grid: Grid, experiment: Experiment, settings: Settings, say: Callable[[str], None] | None = None) -> Run:
    """Run an experiment on the nodes of a grid, and keep it in its folder.

    Raises:
        InputError: it can't be set up, there are too few nodes for too long (`QuorumError`; a checkpoint is left), or
            the checkpoint to go on from is of another experiment, or taken up by another process.
    """
    say = say or _say
    before = _checkpoint(experiment, settings, say)
    folder = _folder(experiment, settings, resumed=before is not None)
    nodes = Nodes(grid, settings, experiment.clients, say)
    federation = _federation(experiment, settings, nodes)
    if before is not None:
        before.check(experiment, federation)
    use_threads(settings.threads or None, federation)
    with folder.taken(over=before is not None):  # a ServerApp that a killed SuperLink left gives way to a new one
        folder.configure(experiment, {"threads": torch.get_num_threads(), "nodes": experiment.clients})
        say(f"{experiment.method} on {experiment.clients} nodes; written to {folder.path.resolve()}")
        fleet = Flower(nodes, federation.context, federation.initial)
        told = _Told(experiment.rounds, federation.dataset.uneven, say)
        observers = [ModelFiles(folder.path), RunFiles(folder, before=before), told]
        done = Course(federation, fleet, before.run_state if before else None, observers).run()
        if len(done.history) < experiment.rounds:
            say(f"ended after {len(done.history)} of {experiment.rounds} rounds: {done.ended}")
        _picture(done, folder, say)
    return done


class _Told(Observer):
    """Says what came of every round, and of the clients with a problem."""

    def __init__(self, rounds: int, f1: bool, say: Callable[[str], None]) -> None:
        self._rounds, self._f1, self._say = rounds, f1, say

    def round_ended(self, outcome: Outcome) -> None:
        self._say(round_line(outcome.record, self._rounds, self._f1))
        for client in outcome.record.clients:
            if client.problem:
                problem = f" ({client.problem})"
                self._say(CLIENT_LINE.format(client=client.client, status=client.status, problem=problem))


def _federation(experiment: Experiment, settings: Settings, nodes: Nodes) -> Federation:
    path = problem_file(settings)
    if path is None:
        return set_up(experiment)
    nodes.gather(everyone=True)
    missing = [client for client in range(experiment.clients) if client not in nodes.nodes]
    if missing:
        raise InputError(
            f"it isn't known how many samples clients {', '.join(map(str, missing))} have: with data of your own, all "
            f"nodes must be there at the start, within wait = {settings.wait:g} s"
        )
    samples = [nodes.nodes[client].samples for client in range(experiment.clients)]
    return set_up_own(experiment, load_problem(path), samples)


def _checkpoint(experiment: Experiment, settings: Settings, say: Callable[[str], None]) -> Checkpoint | None:
    if not settings.resume:
        return None
    found = load_checkpoint(Path(settings.resume), say)
    found.check(experiment)
    return found


def _folder(experiment: Experiment, settings: Settings, resumed: bool) -> RunFolder:
    """Return the run's folder, which is not made yet."""
    given = settings.resume or settings.out
    if not given:
        return RunFolder(default_folder(experiment), numbered=True)
    return RunFolder(Path(given), resumed=resumed)


def _picture(run: Run, folder: RunFolder, say: Callable[[str], None]) -> None:
    try:
        save_curves(run, folder.picture)
        folder.save_page(run_page(folder.path))
    except InputError as missing:
        say(str(missing))


def _say(text: str) -> None:
    print(text, flush=True)
