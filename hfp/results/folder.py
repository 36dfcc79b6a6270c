"""A run's folder: configuration, metrics as they come, the global model, a picture. Nothing there is overwritten."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from hfp.atomic import clear_unfinished, is_unfinished, write_atomically
from hfp.errors import InputError, file_errors
from hfp.federation.experiment import Experiment
from hfp.federation.records import RoundRecord
from hfp.methods import State
from hfp.results.files import (
    CLIENTS,
    CONFIGURATION,
    DESCRIPTION,
    DIAGNOSTICS,
    LOCK,
    METRICS,
    MODEL,
    PAGE,
    PICTURE,
    has_checkpoint,
)
from hfp.results.tensor_file import to_bytes

MACHINE = "machine"
"""What of the configuration is no setting of the experiment: with how many threads it was computed, and so on."""


class RunFolder:
    """Writes one run's files; the metrics grow by one line per round, so that a stopped run keeps what it had."""

    def __init__(self, path: Path, *, resumed: bool = False, numbered: bool = False) -> None:
        """Check that `path` is free, unless a run is `resumed` there; nothing is made yet.

        A `numbered` folder gets a number behind its name where the name is taken.

        Raises:
            InputError: something is there already, or there can't be a folder of that name.
        """
        self.path, self._resumed, self._numbered = path, resumed, numbered
        if not numbered:
            with file_errors(f"output folder {_short(path)} can't be used"):
                self._check_free()

    @contextlib.contextmanager
    def taken(self, *, over: bool = False) -> Iterator[None]:
        """Make the folder, and keep other runs out of it while inside.

        With `over`, a folder that another process has is taken over: `RunFiles` there stops before it writes again.

        Raises:
            InputError: it can't be made, or another run has it.
        """
        self.make()
        with locked(self.path, over=over):
            with file_errors(f"output folder {self.path} can't be used"):
                if not self._numbered:
                    self._check_free()
                if self._resumed:
                    self._check_nothing_lost()
                clear_unfinished(self.path)
            yield

    def make(self) -> None:
        """Make the folder; a numbered one is new.

        Raises:
            InputError: it can't be made.
        """
        self.path = make_folder(self.path, numbered=self._numbered)

    def configure(self, experiment: Experiment, machine: Mapping[str, Any] | None = None) -> None:
        """Write the configuration, and what is to be known of the `machine`: threads, workers.

        Raises:
            InputError: it can't be written.
        """
        values = {**experiment.as_dict(), **({} if machine is None else {MACHINE: dict(machine)})}
        self._write(CONFIGURATION, (json.dumps(values, indent=2) + "\n").encode())

    def append(self, record: RoundRecord) -> None:
        """Add one round's figures as a line of JSON, whole or not at all.

        Raises:
            InputError: it can't be written.
        """
        with file_errors(f"{self.path / METRICS} can't be written"), open(self.path / METRICS, "ab") as file:
            end = file.tell()
            try:
                file.write(_line(record))
                file.flush()
            except OSError:
                with contextlib.suppress(OSError):
                    os.truncate(self.path / METRICS, end)
                raise

    def rewrite(self, history: Sequence[RoundRecord]) -> None:
        """Write all rounds' figures anew, as `append` does one by one.

        Raises:
            InputError: they can't be written.
        """
        self._write(METRICS, b"".join(_line(record) for record in history))

    def save_model(self, experiment: Experiment, state: State) -> None:
        """Write the global model's state, with the names needed to make the model again.

        Raises:
            InputError: it can't be written.
        """
        metadata = {name: str(experiment.as_dict()[name]) for name in ("model", "dataset", "method")}
        self._write(MODEL, to_bytes(state, metadata))

    @property
    def diagnostics(self) -> Path:
        """Where the picture of the diagnostics goes."""
        return self.path / DIAGNOSTICS

    @property
    def picture(self) -> Path:
        """Where the picture goes."""
        return self.path / PICTURE

    def save_page(self, page: str) -> None:
        """Write the run's page.

        Raises:
            InputError: it can't be written.
        """
        self._write(PAGE, page.encode())

    def _write(self, name: str, content: bytes) -> None:
        with file_errors(f"{self.path / name} can't be written"):
            write_atomically(self.path / name, content)

    def _check_free(self) -> None:
        if self._resumed or not self.path.exists():
            return
        if not self.path.is_dir() or any(not self._leftover(path) for path in self.path.iterdir()):
            raise InputError(
                f"output folder {self.path} is not empty; nothing in it is overwritten: give another with --out"
            )

    def _check_nothing_lost(self) -> None:
        """Refuse to begin a finished run anew, which a run without a checkpoint would do."""
        found = None if has_checkpoint(self.path) else read_configuration(self.path)
        if found is None or not (self.path / MODEL).exists():
            return
        with open(self.path / METRICS, "rb") as file:
            done = sum(1 for _ in file)
        if done >= found[0].rounds:
            raise InputError(
                f"the run in {self.path} is finished and has no checkpoint, so that it can't go on; nothing of it is "
                "overwritten: give another folder"
            )

    def _leftover(self, path: Path) -> bool:
        """Whether a file is what is left of a run that was stopped before its first round ended."""
        if path.name in (CONFIGURATION, DESCRIPTION):
            return read_configuration(self.path) is not None
        if path.name == CLIENTS and path.is_dir():
            return not any(path.iterdir())
        return path.name == LOCK or is_unfinished(path)


def make_folder(path: Path, *, numbered: bool = False) -> Path:
    """Make a folder; a `numbered` one is new, and gets a number behind its name where the name is taken.

    Raises:
        InputError: it can't be made.
    """
    if "\0" in str(path):
        raise InputError(f"output folder {_short(path)!r} can't be made: no name has a null character")
    with file_errors(f"output folder {_short(path)} can't be made"):
        if not numbered:
            path.mkdir(parents=True, exist_ok=True)
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        for number in count(1):
            numbered_path = path if number == 1 else path.with_name(f"{path.name}-{number}")
            with contextlib.suppress(FileExistsError):
                numbered_path.mkdir()
                return numbered_path
    raise AssertionError("there is always a number left")


def read_configuration(folder: Path) -> tuple[Experiment, Mapping[str, Any]] | None:
    """Read the experiment and the machine of a run's folder; None where it has no configuration of a run."""
    try:
        values = json.loads((folder / CONFIGURATION).read_text(encoding="utf-8"))
        names = {entry.name for entry in dataclasses.fields(Experiment)}
        if not isinstance(values, dict) or not {"method", "dataset", "rounds"} <= values.keys():
            return None
        machine = values.get(MACHINE)
        experiment = Experiment(**{name: value for name, value in values.items() if name in names})
        return experiment, machine if isinstance(machine, dict) else {}
    except (OSError, ValueError, RecursionError):
        return None


@contextlib.contextmanager
def locked(folder: Path, *, over: bool = False) -> Iterator[None]:
    """Keep other processes out of the folder while inside. The end of this process, however it comes, lets them in.

    With `over`, a folder that another process has is entered all the same.

    Raises:
        InputError: another process has the folder.
    """
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        if over:
            yield
            return
        raise InputError(f"another process is writing to {folder}; wait for it, or give another folder") from None
    except OSError as error:
        raise InputError(f"folder {folder} can't be locked: {error.strerror or error}") from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            (folder / LOCK).unlink(missing_ok=True)
        lock.release()


def default_folder(experiment: Experiment) -> Path:
    """Name a folder by the clock and the experiment, such as ``runs/20260131-120000-ca-hfp-digits``."""
    return Path("runs") / f"{datetime.now():%Y%m%d-%H%M%S}-{experiment.method}-{experiment.dataset_name}"


def _line(record: RoundRecord) -> bytes:
    return (json.dumps(record.as_dict(), allow_nan=False) + "\n").encode()


def _short(path: Path) -> str:
    text = str(path)
    return text if len(text) <= 80 else f"{text[:40]}…{text[-20:]}"
