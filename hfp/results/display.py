"""What is shown of a run while it is under way: in a terminal, in a notebook, or as lines where output is piped."""

from __future__ import annotations

import time
from collections.abc import Sequence
from importlib.util import find_spec

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from hfp.federation.experiment import asked_clients
from hfp.federation.observer import Observer
from hfp.federation.records import IN_TIME, ClientRecord, RoundRecord, Run
from hfp.federation.rounds import Outcome
from hfp.federation.setup import Federation
from hfp.results.beginning import first_lines
from hfp.results.report import round_line

BEAT = 10.0
"""Seconds between two lines that say how far a round is, where output is piped."""


class Display(Observer):
    """Shows live progress: a bar over rounds, one over the round's clients, and a line for every finished round.

    Where the console is no terminal, and no notebook with ipywidgets, a line says now and then how far a long round is.
    """

    def __init__(self, console: Console, jobs: int = 1) -> None:
        self._console, self._jobs = console, jobs
        self._done, self._said = 0, time.monotonic()
        bars_in_notebook = console.is_jupyter and find_spec("ipywidgets") is not None
        self._shows_bars = console.is_terminal or bars_in_notebook
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            transient=True,
            disable=console.is_jupyter and not bars_in_notebook,  # rich would warn in every round
        )

    def run_began(self, federation: Federation, history: Sequence[RoundRecord]) -> None:
        """Say what is run, and start the bars."""
        experiment = self._experiment = federation.experiment
        self._f1 = federation.dataset.uneven
        for line in first_lines(federation, torch.get_num_threads(), self._jobs):
            self._console.print(line, soft_wrap=True, markup=False)
        if history:
            self._console.print(f"goes on after round {len(history)} of {experiment.rounds}")
        asked = asked_clients(experiment.participation, experiment.clients)
        self._rounds = self._progress.add_task("rounds", total=experiment.rounds, completed=len(history), note="")
        self._clients = self._progress.add_task("clients", total=asked, note="")
        self._progress.start()

    def client_done(self, record: ClientRecord) -> None:
        """Move the clients' bar."""
        ended = f"loss {record.loss:.3f}" if record.status == IN_TIME else record.status
        note = f"client {record.client}: ratio {record.ratio:.0%}, {record.samples} images, {ended}"
        self._progress.update(self._clients, advance=1, note=note)
        self._done += 1
        if not self._shows_bars and time.monotonic() - self._said > BEAT:
            self._print(f"clients of the round that are done: {self._done}; {note}")

    def round_ended(self, outcome: Outcome) -> None:
        """Print the round's line, and move the rounds' bar."""
        self._print(round_line(outcome.record, self._experiment.rounds, self._f1))
        self._done = 0
        accuracy = outcome.record.accuracy
        if accuracy is not None:
            self._progress.update(self._rounds, note=f"accuracy {accuracy:.1f} %")
        self._progress.update(self._rounds, advance=1)
        self._progress.update(self._clients, completed=0)

    def _print(self, text: str) -> None:
        self._progress.console.print(text, soft_wrap=True, markup=False)
        self._said = time.monotonic()

    def run_ended(self, run: Run, finished: bool) -> None:
        """Take the bars away."""
        self._progress.stop()
