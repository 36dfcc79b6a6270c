"""Data sets in memory and the ways to deal them out to clients."""

from hfp.data.augment import augment
from hfp.data.dataset import Dataset, Split
from hfp.data.load import datasets, load_dataset
from hfp.data.partition import partition, schemes

__all__ = ["Dataset", "Split", "augment", "datasets", "load_dataset", "partition", "schemes"]
