"""Keeps in a run's folder what is needed to use its models: how to make them again, plans, and trained submodels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hfp.errors import InputError, file_errors
from hfp.federation.observer import Observer
from hfp.federation.records import RoundRecord, Run
from hfp.federation.rounds import RunState
from hfp.federation.setup import Federation
from hfp.methods import ServerState, Update
from hfp.reconstruct import MapError, Plan
from hfp.results.description import ModelDescription, write_description
from hfp.results.files import CLIENTS
from hfp.results.submodels import ClientSaver, PlansFile


class ModelFiles(Observer):
    """Writes the model's description when the run begins, plans after every round and, if asked, clients' models.

    A run that saved its clients' models before it was interrupted goes on doing so. It stands before `RunFiles` among
    the observers: a checkpoint is written when the plans of its round are.
    """

    def __init__(self, folder: Path, *, save_clients: bool = False) -> None:
        self._folder, self._save_clients = folder, save_clients
        self._saver: ClientSaver | None = None
        self._plans, self._unwritten = PlansFile(folder), dict[int, tuple[int, str, Plan]]()

    def run_began(self, federation: Federation, history: Sequence[RoundRecord]) -> None:
        """Write how to make the model again.

        Raises:
            InputError: it can't be written.
        """
        with self._writing():
            description = ModelDescription.of(federation)
            write_description(self._folder, description)
            self._plans.begin(resumed=bool(history))
            if self._save_clients or (self._folder / CLIENTS).is_dir():
                self._saver = ClientSaver(self._folder, federation, description)

    def update_came(self, state: ServerState, update: Update) -> None:
        """Save the client's model as its training left it.

        Raises:
            InputError: it can't be written.
        """
        if self._saver is not None:
            with self._writing():
                self._saver.save(state, update)

    def state_settled(self, run_state: RunState) -> None:
        """Write the clients' last plans.

        Raises:
            InputError: they can't be written.
        """
        self._unwritten.update(run_state.plans)
        self._write_plans()

    def run_ended(self, run: Run, finished: bool) -> None:
        """Write plans whose writing was interrupted.

        Raises:
            InputError: they can't be written.
        """
        self._write_plans()

    def _write_plans(self) -> None:
        if not self._unwritten:
            return
        try:
            with self._writing():
                self._plans.write(self._unwritten)
        except InputError:  # what could not be written is not tried again in the end; after an interruption it is
            self._unwritten = {}
            raise
        self._unwritten = {}

    @contextmanager
    def _writing(self) -> Iterator[None]:
        what = f"files in {self._folder} can't be written"
        try:
            with file_errors(what):
                yield
        except MapError as error:
            raise InputError(f"{what}: {error}") from error
