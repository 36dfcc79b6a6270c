"""Keeps in a run's folder what is needed to use its models: how to make them again, plans, and trained submodels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hfp.errors import InputError
from hfp.federation.records import RoundRecord
from hfp.federation.rounds import RunState
from hfp.federation.setup import Federation
from hfp.methods import ServerState, Update
from hfp.results.description import ModelDescription, write_description
from hfp.results.submodels import ClientSaver, write_plans


class ModelFiles:
    """Writes the model's description when the run begins, plans after every round and, if asked, clients' models."""

    def __init__(self, folder: Path, *, save_clients: bool = False) -> None:
        self._folder, self._save_clients = folder, save_clients
        self._saver: ClientSaver | None = None

    def run_began(self, federation: Federation, history: Sequence[RoundRecord]) -> None:
        """Write how to make the model again.

        Raises:
            InputError: it can't be written.
        """
        try:
            description = ModelDescription.of(federation)
            write_description(self._folder, description)
            if self._save_clients:
                self._saver = ClientSaver(self._folder, federation, description)
        except OSError as error:
            raise self._unwritable(error) from error

    def update_came(self, state: ServerState, update: Update) -> None:
        """Save the client's model as its training left it.

        Raises:
            InputError: it can't be written.
        """
        if self._saver is None:
            return
        try:
            self._saver.save(state, update)
        except OSError as error:
            raise self._unwritable(error) from error

    def state_settled(self, run_state: RunState) -> None:
        """Write the clients' last plans.

        Raises:
            InputError: they can't be written.
        """
        try:
            write_plans(self._folder, run_state.plans)
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> InputError:
        return InputError(f"files in {self._folder} can't be written: {error.strerror or error}")
