"""The observer that keeps a run in its folder: metrics every round, checkpoints and the global model every few."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hfp.errors import InputError, file_errors
from hfp.federation.observer import Observer
from hfp.federation.records import RoundRecord, Run
from hfp.federation.rounds import Outcome, RunState
from hfp.federation.setup import Federation
from hfp.results.checkpoint import Checkpoint, fingerprint, save_checkpoint
from hfp.results.files import CHECKPOINT, METRICS, PREVIOUS
from hfp.results.folder import RunFolder


class RunFiles(Observer):
    """Writes a line of metrics each round, and a checkpoint and the global model after `every` rounds and in the end.

    With `every` 0 there are no checkpoints, and the model is written in the end alone. `before` is the checkpoint that
    the run goes on from. It is written once more, by which another process knows that it is to stop, and in place of a
    newer one that is damaged.
    """

    def __init__(self, folder: RunFolder, every: int = 1, before: Checkpoint | None = None) -> None:
        self._folder, self._every, self._before = folder, every, before
        self._unsaved: RunState | None = None
        self._model_is_due = True
        self._own = {self._stamp(folder.path / CHECKPOINT)}

    def run_began(self, federation: Federation, history: Sequence[RoundRecord]) -> None:
        """Write the rounds that were done before: an interrupted run may have left half a line, or one too many."""
        self._experiment = federation.experiment
        self._data = fingerprint(federation) if self._every else ""
        if self._before is not None:
            self._save_checkpoint(self._before, replace=True)
            self._before = None
        if history or (self._folder.path / METRICS).exists():
            self._folder.rewrite(history)

    def round_ended(self, outcome: Outcome) -> None:
        """Write the round's metrics."""
        self._check_own()
        self._folder.append(outcome.record)

    def state_settled(self, run_state: RunState) -> None:
        """Save the state when it is time."""
        self._unsaved = run_state
        if self._every and run_state.state.round % self._every == 0:
            self._save()

    def run_ended(self, run: Run, finished: bool) -> None:
        """Save what has not been saved; the second checkpoint is of no more use in a finished run."""
        self._save()
        if run.history and self._model_is_due:  # the run before was killed between its last checkpoint and its model
            self._folder.save_model(self._experiment, run.global_state)
        if finished:
            (self._folder.path / PREVIOUS).unlink(missing_ok=True)

    def _save(self) -> None:
        run_state = self._unsaved
        if run_state is None:
            return
        try:
            if self._every:
                self._check_own()
                self._save_checkpoint(Checkpoint(self._experiment, run_state, self._data))
            self._folder.save_model(self._experiment, run_state.state.weights)
        except Exception:  # what could not be written is not tried again in the end; after an interruption it is
            self._unsaved, self._model_is_due = None, False
            raise
        self._unsaved, self._model_is_due = None, False

    def _save_checkpoint(self, checkpoint: Checkpoint, *, replace: bool = False) -> None:
        path = self._folder.path
        with file_errors(f"{path / CHECKPOINT} can't be written"):
            save_checkpoint(path, checkpoint, lambda file: self._own.add(self._stamp(file)), replace=replace)

    def _check_own(self) -> None:
        """Refuse to write where another process has taken the run up.

        Raises:
            InputError: saying so.
        """
        path = self._folder.path
        if self._stamp(path / CHECKPOINT) not in {None, *self._own}:
            raise InputError(f"another process goes on with the run in {path}; this one leaves it alone")

    @staticmethod
    def _stamp(path: Path) -> tuple[int, int] | None:
        """Return what tells a file from another's of the same name, and a rename leaves alone; None without a file."""
        try:
            status = path.stat()
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns
