"""Make data sets of one's own tensors, of any shape: tables, signals, or images that are normalised already."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hfp.data.dataset import Dataset, Split, check_splits
from hfp.errors import InputError

LARGEST_LABEL = 1_000_000  # what is larger is no class, and as many names would fill the memory


def from_tensors(
    train_x: Tensor,
    train_y: Tensor,
    test_x: Tensor,
    test_y: Tensor,
    classes: Sequence[str] | None = None,
    *,
    name: str = "tensors",
) -> Dataset:
    """Make a data set of tensors that models take as they are, without scaling, normalising or resizing.

    Give it to an experiment: `hfp.Experiment(dataset=from_tensors(...), model=...)`. `hfp.data.make_dataset` is for
    images that hfp is to normalise.

    Args:
        train_x: samples `[samples, ...]` of any shape, such as tables `[samples, features]` or signals `[samples,
            channels, time]`, in uint8 or floats. Models get them as float32.
        train_y: int64 labels `[samples]`.
        test_x: samples of the same shape and dtype.
        test_y: their labels.
        classes: a name for every label from 0 on. By default these are the numbers up to the largest label.
        name: what errors and results call the data.

    Returns:
        The data set.

    Raises:
        InputError: the tensors fail `hfp.data.dataset.check_splits`, or no `classes` are given and a label is above
            `LARGEST_LABEL`.

    >>> import torch
    >>> x, y = torch.randn(90, 7), torch.arange(90) % 3
    >>> from_tensors(x[:60], y[:60], x[60:], y[60:]).classes
    ('0', '1', '2')
    """
    if classes is None:
        labels = [y for y in (train_y, test_y) if isinstance(y, Tensor) and y.dtype == torch.int64 and y.numel()]
        largest = max((int(y.max()) for y in labels), default=0)
        if largest > LARGEST_LABEL:
            raise InputError(f"data set {name}: labels must count classes from 0; found {largest}")
        classes = [str(label) for label in range(largest + 1)]
    train, test = Split(train_x, train_y), Split(test_x, test_y)
    check_splits(name, train, test, tuple(classes))
    return unnormalised(name, train, test, tuple(classes))


def unnormalised(name: str, train: Split, test: Split, classes: tuple[str, ...]) -> Dataset:
    """Make a data set whose samples models take as they are."""
    shape = tuple(test.images.shape[1:])
    return Dataset(name, train, test, classes, shape, torch.zeros(shape[0]), torch.ones(shape[0]))
