"""A run's figures in a tracker that people have: TensorBoard. Needs the `tensorboard` extra."""

from __future__ import annotations

import os
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
        record = outcome.record.as_dict()
        for name, value in numbers({name: value for name, value in record.items() if name not in ("clients", "round")}):
            self._writer.add_scalar(name, value, record["round"])
        self._writer.flush()

    def run_ended(self, run: Run, finished: bool) -> None:
        """Close the files."""
        self._writer.close()


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
