"""Load CIFAR-10 and CIFAR-100: 50,000 and 10,000 colour images of 32×32 pixels (Krizhevsky, 2009)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torchvision.datasets import CIFAR10, CIFAR100

from hfp.data.dataset import Dataset, Split, make_dataset
from hfp.data.imagefolder import load_tree
from hfp.data.request import DataRequest, missing
from hfp.data.tree import has_splits
from hfp.errors import InputError

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def load_cifar10(request: DataRequest) -> Dataset:
    """Read torchvision's files, or an image tree `train/<class>/*`, `test/<class>/*` under the root.

    Raises:
        InputError: neither is there and no download was asked for, the download failed, files are damaged, or the
            classes of a tree are not those of CIFAR-10.
    """
    if request.root is None or _holds(CIFAR10, request.folder) or not has_splits(request.root):
        return _load(CIFAR10, request, "or of a train/<class>, test/<class> image tree ")
    dataset = load_tree(request, size=32)
    if dataset.classes != CIFAR10_CLASSES:
        raise InputError(f"{request.root} holds other classes than CIFAR-10: {', '.join(dataset.classes)}")
    return dataset


def load_cifar100(request: DataRequest) -> Dataset:
    """Read torchvision's files under the root; labels are the 100 fine ones.

    Raises:
        InputError: there are no files and no download was asked for, the download failed, or files are damaged.
    """
    return _load(CIFAR100, request, "")


def _holds(source: type[CIFAR10], root: Path) -> bool:
    return (root / source.base_folder).is_dir()


def _load(source: type[CIFAR10], request: DataRequest, also: str) -> Dataset:
    root = request.folder
    if not _holds(source, root) and not request.download:
        raise missing(
            request.name,
            [root / source.base_folder],
            [f"give the folder of {source.base_folder} {also}with --data-root PATH", "use --download"],
        )
    try:
        root.mkdir(parents=True, exist_ok=True)
        train, test = (source(root, train=part, download=request.download and part) for part in (True, False))
    except (OSError, RuntimeError) as error:
        raise InputError(f"could not read {request.name} under {root}: {error}") from error
    chosen = request.select(np.asarray(train.targets))
    everything = np.arange(len(test.targets))
    return make_dataset(request.name, _split(train, chosen), _split(test, everything), tuple(train.classes))


def _split(part: CIFAR10, chosen: np.ndarray) -> Split:
    images = np.ascontiguousarray(part.data[chosen].transpose(0, 3, 1, 2))
    return Split(torch.from_numpy(images), torch.from_numpy(np.asarray(part.targets, dtype=np.int64)[chosen]))
