"""``hfp run``: one federated experiment, shown while it runs and kept in a folder."""

from __future__ import annotations

import argparse
import json
import sys

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from hfp.commands.arguments.settings import given_settings
from hfp.errors import InputError
from hfp.federation.experiment import Experiment
from hfp.federation.participation import asked_clients
from hfp.federation.records import IN_TIME, ClientRecord, Run
from hfp.federation.rounds import Outcome, full_cost, rounds
from hfp.federation.setup import Federation, set_up
from hfp.federation.threads import use_threads
from hfp.results.beginning import first_lines
from hfp.results.folder import RunFolder, default_folder
from hfp.results.model_files import ModelFiles
from hfp.results.plots import save_curves, save_diagnostics
from hfp.results.report import round_line, run_document, run_table

INTERRUPTED = 130  # what a shell reports for a program ended by Ctrl-C


def run(arguments: argparse.Namespace) -> int:
    """Run the experiment; 0 when it finished, 130 when it was interrupted (what was done is kept)."""
    experiment = experiment_from(arguments)
    folder = RunFolder(arguments.out if arguments.out is not None else default_folder(experiment))
    console = Console(stderr=arguments.json, highlight=False)
    federation = set_up(experiment)
    use_threads(arguments.threads, federation)
    folder.configure(experiment)
    models = ModelFiles(folder.path, save_clients=arguments.save_clients)
    models.run_began(federation, ())
    history, state, interrupted = [], None, False
    with _Display(console, federation) as display:
        try:
            for outcome in rounds(federation, display.client_done, models.update_came, models.state_settled):
                history.append(outcome.record)
                state = outcome.state.weights
                folder.append(outcome.record)
                display.round_done(outcome)
        except KeyboardInterrupt:
            interrupted = True
        finally:
            if state is not None:
                folder.save_model(experiment, state)
    if state is None:
        console.print("stopped before the first round ended; nothing to keep")
        return INTERRUPTED
    cost = full_cost(federation, len(history))
    _close(Run(experiment, tuple(history), state, cost), folder, console, arguments.json)
    if interrupted:
        console.print(f"stopped after {len(history)} of {experiment.rounds} rounds")
    return INTERRUPTED if interrupted else 0


def experiment_from(arguments: argparse.Namespace) -> Experiment:
    """The experiment that the arguments describe; what isn't given keeps `Experiment`'s default."""
    return Experiment(**given_settings(arguments))


def _close(run: Run, folder: RunFolder, console: Console, as_json: bool) -> None:
    console.print()
    console.print(run_table(run))
    try:
        save_curves(run, folder.picture)
        if run.experiment.diagnostics:
            save_diagnostics(run, folder.diagnostics)
    except InputError as missing:
        console.print(f"no picture: {missing}", soft_wrap=True, markup=False)
    console.print(f"written to {folder.path}", soft_wrap=True, markup=False)
    if as_json:
        json.dump(run_document(run, str(folder.path)), sys.stdout)
        sys.stdout.write("\n")


class _Display:
    """Live progress: a bar over rounds, one over the round's clients, and a line for every finished round."""

    def __init__(self, console: Console, federation: Federation) -> None:
        self._console = console
        self._federation = federation
        self._experiment = federation.experiment
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            transient=True,
        )

    def __enter__(self) -> _Display:
        experiment = self._experiment
        for line in first_lines(self._federation, torch.get_num_threads()):
            self._console.print(line, soft_wrap=True, markup=False)
        self._rounds = self._progress.add_task("rounds", total=experiment.rounds, note="")
        self._clients = self._progress.add_task(
            "clients", total=asked_clients(experiment.participation, experiment.clients), note=""
        )
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def client_done(self, record: ClientRecord) -> None:
        ended = f"loss {record.loss:.3f}" if record.status == IN_TIME else record.status
        note = f"client {record.client}: {record.ratio:.0%} removed, {record.samples} images, {ended}"
        self._progress.update(self._clients, advance=1, note=note)

    def round_done(self, outcome: Outcome) -> None:
        self._progress.console.print(round_line(outcome.record, self._experiment.rounds), soft_wrap=True)
        accuracy = outcome.record.accuracy
        if accuracy is not None:
            self._progress.update(self._rounds, note=f"accuracy {accuracy:.1f} %")
        self._progress.update(self._rounds, advance=1)
        self._progress.update(self._clients, completed=0)
