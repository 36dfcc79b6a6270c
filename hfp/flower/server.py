"""The ServerApp, ``hfp.flower.server:app``: the course of a run on Flower's nodes, with a checkpoint every round."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from hfp.errors import InputError
from hfp.federation.experiment import Experiment
from hfp.federation.problem import load_problem
from hfp.federation.records import RoundRecord, Run
from hfp.federation.rounds import Course, full_cost
from hfp.federation.setup import Federation, set_up, set_up_own
from hfp.federation.threads import use_threads
from hfp.flower.experiments import experiment_from
from hfp.flower.nodes import Flower, Nodes
from hfp.flower.settings import Settings, problem_file, settings_from
from hfp.results.checkpoint import CHECKPOINT, Checkpoint, load_checkpoint, save_checkpoint
from hfp.results.folder import RunFolder, default_folder
from hfp.results.model_files import ModelFiles
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
    before = _checkpoint(experiment, settings)
    folder = RunFolder(_folder(experiment, settings), resumed=before is not None)
    nodes = Nodes(grid, settings, experiment.clients, say)
    federation = _federation(experiment, settings, nodes)
    use_threads(settings.threads or None, federation)
    folder.configure(experiment)
    models = ModelFiles(folder.path)
    models.run_began(federation, before.history if before else ())
    say(f"{experiment.method} on {experiment.clients} nodes; written to {folder.path.resolve()}")
    fleet = Flower(nodes, federation.context, federation.initial)
    course = Course(federation, fleet, before.run_state if before else None)
    history = list(before.history) if before else []
    keeper = _Keeper(folder.path / CHECKPOINT)
    for _ in range(len(history), experiment.rounds):
        outcome = course.advance()
        history.append(outcome.record)
        keeper.save(Checkpoint(experiment, tuple(history), course.run_state))
        folder.rewrite(history)
        models.state_settled(course.run_state)
        _tell(outcome.record, experiment.rounds, say)
    done = Run(experiment, tuple(history), course.state.weights, full_cost(federation, len(history)))
    folder.save_model(experiment, done.global_state)
    _picture(done, folder, say)
    return done


class _Keeper:
    """Saves checkpoints, unless somebody else has: of a SuperLink that was killed a ServerApp may have been left."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._last = self._stamp()

    def save(self, checkpoint: Checkpoint) -> None:
        """Write it.

        Raises:
            InputError: the run was taken up by another process meanwhile.
        """
        if self._stamp() != self._last:
            raise InputError(f"another process goes on with the run in {self._path.parent}; this one leaves it alone")
        save_checkpoint(self._path, checkpoint)
        self._last = self._stamp()

    def _stamp(self) -> tuple[int, int] | None:
        try:
            status = self._path.stat()
        except FileNotFoundError:
            return None
        return status.st_ino, status.st_mtime_ns


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


def _checkpoint(experiment: Experiment, settings: Settings) -> Checkpoint | None:
    if not settings.resume:
        return None
    found = load_checkpoint(Path(settings.resume) / CHECKPOINT)
    mine, theirs = (json.loads(json.dumps(one.as_dict())) for one in (experiment, found.experiment))
    differing = ", ".join(
        f"{name} {theirs[name]!r}" for name in mine if name != "rounds" and mine[name] != theirs[name]
    )
    if differing:
        raise InputError(f"the run in {settings.resume} is of another experiment: it has {differing}")
    return found


def _folder(experiment: Experiment, settings: Settings) -> Path:
    return Path(settings.resume or settings.out) if settings.resume or settings.out else default_folder(experiment)


def _tell(record: RoundRecord, rounds: int, say: Callable[[str], None]) -> None:
    say(round_line(record, rounds))
    for client in record.clients:
        if client.problem:
            say(CLIENT_LINE.format(client=client.client, status=client.status, problem=f" ({client.problem})"))


def _picture(run: Run, folder: RunFolder, say: Callable[[str], None]) -> None:
    try:
        save_curves(run, folder.picture)
    except InputError as missing:
        say(str(missing))


def _say(text: str) -> None:
    print(text, flush=True)
