"""Load data sets, by name or from your own tensors, and deal them out to clients.

What needs torch is loaded when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hfp.data.partition import partition, schemes
from hfp.lazy import lazily

if TYPE_CHECKING:
    from hfp.data.augmentation import augment
    from hfp.data.dataset import Dataset, Split, make_dataset
    from hfp.data.load import datasets, load_dataset, register_dataset
    from hfp.data.request import DataRequest
    from hfp.data.tensors import from_tensors

__all__ = [
    "Dataset",
    "DataRequest",
    "Split",
    "augment",
    "datasets",
    "from_tensors",
    "load_dataset",
    "make_dataset",
    "partition",
    "register_dataset",
    "schemes",
]

__getattr__, __dir__ = lazily(
    __name__,
    {
        "hfp.data.augmentation": "augment",
        "hfp.data.dataset": "Dataset Split make_dataset",
        "hfp.data.load": "datasets load_dataset register_dataset",
        "hfp.data.request": "DataRequest",
        "hfp.data.tensors": "from_tensors",
    },
)
