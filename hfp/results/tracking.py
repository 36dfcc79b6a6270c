"""A run's figures in a tracker that people have: TensorBoard or trackio. Each needs the extra of its name."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hfp.errors import InputError
from hfp.federation.observer import Observer
from hfp.federation.records import RoundRecord, Run
from hfp.federation.rounds import Outcome
from hfp.federation.setup import Federation


class TensorBoard(Observer):
    """Writes every figure of every round for TensorBoard, also figures that other observers measured.

    A figure inside another one is named with a slash, for instance ``personal/own``. The clients' own figures are left
    to ``metrics.jsonl``. In a resumed run the rounds that are done again take the place of those before.

    Args:
        path: the folder for TensorBoard's files; ``tensorboard --logdir`` of it, or of one above, shows them.

    Raises:
        InputError: the `tensorboard` extra is missing.

    >>> import hfp
    >>> from hfp.results.tracking import TensorBoard
    >>> experiment = hfp.Experiment(clients=2, rounds=1, train_images=40, head_start=1)
    >>> run = hfp.simulate(experiment, observers=[TensorBoard("curves")])  # doctest: +SKIP
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise InputError('TensorBoard is not installed; pip install "hfp[tensorboard]"') from None
        self._make, self._path = SummaryWriter, Path(path)

    def run_began(self, federation: Federation, history: Sequence[RoundRecord]) -> None:
        """Open the files."""
        self._writer = self._make(str(self._path), purge_step=len(history) + 1 if history else None)

    def round_ended(self, outcome: Outcome) -> None:
        """Write a round's figures."""
        for name, value in _shown(outcome).items():
            self._writer.add_scalar(name, value, outcome.record.round)
        self._writer.flush()

    def run_ended(self, run: Run, finished: bool) -> None:
        """Close the files."""
        self._writer.close()


class Trackio(Observer):
    """Logs every figure of every round with trackio, also figures that other observers measured.

    Trackio keeps a database in its own folder (``$TRACKIO_DIR``), and ``trackio show --project hfp`` shows it. Nothing
    leaves the machine, unless trackio's own settings name a space or server. The experiment's settings are the
    configuration of the run. The figures have the names that `TensorBoard` has. A resumed run goes on in the same
    curves; if it was saved only every few rounds, the rounds that are done again are there twice.

    Args:
        name: what trackio calls the run. By default trackio makes a name up.
        project: trackio shows the runs of one project together.

    Raises:
        InputError: the `trackio` extra is missing.

    >>> import hfp
    >>> from hfp.results.tracking import Trackio
    >>> experiment = hfp.Experiment(clients=2, rounds=1, train_images=40, head_start=1)
    >>> run = hfp.simulate(experiment, observers=[Trackio("first try")])  # doctest: +SKIP
    """

    def __init__(self, name: str | None = None, project: str = "hfp") -> None:
        try:
            import trackio
        except ImportError:
            raise InputError('trackio is not installed; pip install "hfp[trackio]"') from None
        self._trackio, self._name, self._project = trackio, name, project

    def run_began(self, federation: Federation, history: Sequence[RoundRecord]) -> None:
        """Begin a run, or go on with the one of this name."""
        resume = "allow" if history and self._name is not None else "never"
        with contextlib.redirect_stdout(sys.stderr):  # trackio prints, and standard output may be a JSON document
            self._run = self._trackio.init(
                project=self._project,
                name=self._name,
                config=federation.experiment.as_dict(),
                resume=resume,
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )

    def round_ended(self, outcome: Outcome) -> None:
        """Log a round's figures."""
        self._run.log(_shown(outcome), step=outcome.record.round)

    def run_ended(self, run: Run, finished: bool) -> None:
        """Wait until all is written."""
        with contextlib.redirect_stdout(sys.stderr):
            self._trackio.finish()


def _shown(outcome: Outcome) -> dict[str, float]:
    """Return a round's figures by name, without those of single clients, which are in the metrics file."""
    record = outcome.record.as_dict()
    return dict(numbers({name: value for name, value in record.items() if name not in ("clients", "round")}))


def numbers(figures: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, float]]:
    """Give all numbers in a table of figures, with the names of those inside others joined by slashes.

    >>> list(numbers({"loss": 0.5, "phase": "score", "personal": {"own": 98.0}}))
    [('loss', 0.5), ('personal/own', 98.0)]
    """
    for name, value in figures.items():
        if isinstance(value, Mapping):
            yield from numbers(value, f"{above}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{above}{name}", float(value)
