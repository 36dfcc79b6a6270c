"""Say what a caller asked of a data set, and where data sets are looked for."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hfp.data.stratify import stratified_subset
from hfp.errors import InputError


@dataclass(frozen=True)
class DataRequest:
    """What `load_dataset` was asked for, in the form that a loader gets it; the arguments are explained there.

    >>> import numpy as np
    >>> request = DataRequest("mine", None, limit=4, download=False, seed=0, image_size=None, cache=True)
    >>> len(request.select(np.array([0, 0, 0, 0, 1, 1, 1, 1])))
    4
    """

    name: str
    root: Path | None
    limit: int | None
    download: bool
    seed: int
    image_size: int | None
    cache: bool

    @property
    def folder(self) -> Path:
        """Return the folder that was given, else the one that downloads go to."""
        return self.root if self.root is not None else cache_home() / "datasets"

    def select(self, labels: np.ndarray) -> np.ndarray:
        """Choose the training images to use, by their labels `[samples]`.

        Returns:
            Their ascending indices.

        Raises:
            InputError: the limit is larger than the training split, or smaller than the number of classes.
        """
        if self.limit is None:
            return np.arange(len(labels))
        classes = len(np.unique(labels))
        if not classes <= self.limit <= len(labels):
            raise InputError(
                f"limit must be between {classes} (one image per class) and the {len(labels)} training images "
                f"of {self.name}, found {self.limit}"
            )
        return stratified_subset(labels, self.limit, self.seed)


def cache_home() -> Path:
    """Return the folder of what can be made or fetched again: `$XDG_CACHE_HOME/hfp`, by default `~/.cache/hfp`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hfp"


def missing(name: str, looked: Sequence[Path | str], remedies: Sequence[str]) -> InputError:
    """Make the error about a data set that is not there, which says where it was looked for and what to do."""
    places = ", ".join(str(place) for place in looked)
    return InputError(f"data set {name} not found (looked in {places}); {', or '.join(remedies)}")
