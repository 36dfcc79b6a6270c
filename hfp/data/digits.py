"""Load the 1,797 handwritten digits of 8×8 pixels that come with scikit-learn."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path

import numpy as np
import torch

from hfp.data.dataset import Dataset, Split, make_dataset
from hfp.data.request import DataRequest
from hfp.data.stratify import stratified_halves
from hfp.errors import InputError, file_errors

_TEST_SHARE = 0.2
_SPLIT_SEED = 0


def load_digits(request: DataRequest) -> Dataset:
    """Load 1,438 training and 359 test images with values from 0 to 16.

    The split is the same for every seed.

    Raises:
        InputError: scikit-learn is not installed.
    """
    values, target = _digits()
    images, labels = torch.from_numpy(values.astype(np.uint8)).unsqueeze(1), torch.from_numpy(target.astype(np.int64))
    train, test = stratified_halves(target, _TEST_SHARE, _SPLIT_SEED)
    train = train[request.select(target[train])]
    names = tuple(map(str, range(10)))
    return make_dataset(request.name, Split(images[train], labels[train]), Split(images[test], labels[test]), names)


@functools.cache
def _digits() -> tuple[np.ndarray, np.ndarray]:
    """Read scikit-learn's text file without scikit-learn and SciPy, which take seconds to load."""
    found = importlib.util.find_spec("sklearn")
    if found is None or found.origin is None:
        raise InputError('data set digits comes with scikit-learn; pip install "hfp[examples]"')
    file = Path(found.origin).parent / "datasets" / "data" / "digits.csv.gz"
    with file_errors(f"scikit-learn's file of digits {file} can't be read"):
        rows = np.loadtxt(file, delimiter=",")
    return rows[:, :-1].reshape(-1, 8, 8), rows[:, -1].astype(int)
