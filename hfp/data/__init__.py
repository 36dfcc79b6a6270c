"""Data sets in memory and the ways to deal them out to clients."""

from hfp.data.augment import augment
from hfp.data.dataset import Dataset, Split, make_dataset
from hfp.data.load import datasets, load_dataset, register_dataset
from hfp.data.partition import partition, schemes
from hfp.data.request import DataRequest

__all__ = [
    "Dataset",
    "DataRequest",
    "Split",
    "augment",
    "datasets",
    "load_dataset",
    "make_dataset",
    "partition",
    "register_dataset",
    "schemes",
]
