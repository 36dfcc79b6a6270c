"""Any folder tree of images, one folder a class."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torchvision.datasets.folder import IMG_EXTENSIONS, find_classes
from torchvision.datasets.folder import make_dataset as list_images

from hfp.data.dataset import Dataset, Split, make_dataset
from hfp.data.decode import decode
from hfp.data.request import DataRequest
from hfp.data.stratify import stratified_halves
from hfp.errors import InputError

_TEST_SHARE = 0.2
_DEFAULT_SIZE = 32


@dataclass(frozen=True, eq=False)
class _Files:
    paths: np.ndarray
    labels: np.ndarray

    def at(self, chosen: np.ndarray) -> _Files:
        return _Files(self.paths[chosen], self.labels[chosen])


def load_imagefolder(request: DataRequest) -> Dataset:
    """Read `root/train/<class>/*` and `root/test/<class>/*` (or `val`), else split `root/<class>/*` 80 to 20 by seed.

    Raises:
        InputError: no root, no class folders, a class without images, splits with different classes, or an image
            that can't be decoded.
    """
    if request.root is None:
        raise InputError("data set imagefolder needs the folder of the images: --data-root PATH")
    return load_tree(request, size=request.image_size or _DEFAULT_SIZE)


def load_tree(request: DataRequest, size: int) -> Dataset:
    """Read an image tree under the request's root; images are cut to `size` × `size` pixels about their centre."""
    root = request.folder
    train, test, classes = _list_splits(root, request.seed)
    train = train.at(request.select(train.labels))
    return make_dataset(
        request.name,
        *_decode_splits(root, train, test, size, request.cache),
        classes,
    )


def has_splits(root: Path) -> bool:
    """Whether a folder holds `train` and `test` (or `val`)."""
    return (root / "train").is_dir() and _test_folder(root) is not None


def _test_folder(root: Path) -> Path | None:
    return next((root / name for name in ("test", "val") if (root / name).is_dir()), None)


def _list_splits(root: Path, seed: int) -> tuple[_Files, _Files, tuple[str, ...]]:
    test_folder = _test_folder(root)
    if not (root / "train").is_dir() or test_folder is None:
        return _split_tree(root, seed)
    train, classes = _list(root / "train")
    test, test_classes = _list(test_folder)
    if classes != test_classes:
        odd = sorted(set(classes) ^ set(test_classes))
        raise InputError(f"{root / 'train'} and {test_folder} hold different classes; only one has {', '.join(odd)}")
    return train, test, classes


def _split_tree(root: Path, seed: int) -> tuple[_Files, _Files, tuple[str, ...]]:
    files, classes = _list(root)
    counts = np.bincount(files.labels)
    if counts.min() < 2:
        raise InputError(f"class {classes[counts.argmin()]} in {root} has one image; a split needs two or more a class")
    train, test = stratified_halves(files.labels, _TEST_SHARE, seed)
    return files.at(train), files.at(test), classes


def _list(folder: Path) -> tuple[_Files, tuple[str, ...]]:
    try:
        classes, index = find_classes(folder)
        paths, labels = zip(*list_images(folder, index, IMG_EXTENSIONS), strict=True)
    except OSError as error:
        raise InputError(f"{folder} is not a tree of images, one folder a class: {error}") from error
    return _Files(np.array(paths), np.array(labels, dtype=np.int64)), tuple(classes)


def _decode_splits(root: Path, train: _Files, test: _Files, size: int, cache: bool) -> tuple[Split, Split]:
    arrays = [decode(root, files.paths.tolist(), size, cache) for files in (train, test)]
    channels = max(array.shape[1] for array in arrays)
    first, second = (
        Split(torch.from_numpy(array).expand(-1, channels, -1, -1).contiguous(), torch.from_numpy(files.labels))
        for array, files in zip(arrays, (train, test), strict=True)
    )
    return first, second
