"""Load Fashion-MNIST: 60,000 and 10,000 grey images of 28×28 pixels (arXiv 1708.07747)."""

from __future__ import annotations

import gzip
import shutil
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torchvision.datasets import FashionMNIST
from torchvision.datasets.mnist import read_image_file, read_label_file

from hfp.data.dataset import Dataset, Split, make_dataset
from hfp.data.request import DataRequest, missing
from hfp.errors import InputError

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
_DAMAGE = (OSError, EOFError, zlib.error, AssertionError, LookupError, RuntimeError, TypeError, ValueError)


def load_fmnist(request: DataRequest) -> Dataset:
    """Read the files under the root, else those of the Debian package.

    The root may have torchvision's layout, or the files themselves.

    Raises:
        InputError: there are no files and no download was asked for, the download failed, or a file is missing or
            damaged.
    """
    folder = _folder(request)
    train = _read_split(folder, "train")
    chosen = torch.from_numpy(request.select(train.labels.numpy()))
    train = Split(train.images[chosen], train.labels[chosen])
    return make_dataset(request.name, train, _read_split(folder, "t10k"), tuple(FashionMNIST.classes))


def _folder(request: DataRequest) -> Path:
    folders = [request.folder / "FashionMNIST" / "raw", request.folder]
    if request.root is None:
        folders.insert(0, DEBIAN_FOLDER)
    for folder in folders:
        found = [_find(folder, name) is not None for name in _FILES]
        if all(found) or (any(found) and not request.download):
            return folder
    if request.download:
        return _download(request.folder)
    raise missing(
        request.name,
        folders,
        ["apt-get install dataset-fashion-mnist", "give its folder with --data-root PATH", "use --download"],
    )


def _download(root: Path) -> Path:
    try:
        root.mkdir(parents=True, exist_ok=True)
        return Path(FashionMNIST(root, download=True).raw_folder)
    except (OSError, RuntimeError) as error:
        raise InputError(f"could not download fmnist into {root}: {error}") from error


def _find(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def _read_split(folder: Path, prefix: str) -> Split:
    images = _read(folder, f"{prefix}-images-idx3-ubyte", read_image_file)
    labels = _read(folder, f"{prefix}-labels-idx1-ubyte", read_label_file)
    if images.shape[1:] != (28, 28) or len(images) != len(labels) or not len(labels) or labels.max() >= 10:
        raise InputError(
            f"damaged {prefix} files in {folder}: expected as many labels (0 to 9) as images of 28x28 pixels, found "
            f"{len(labels)} labels up to {labels.max() if len(labels) else None} and images {list(images.shape)}"
        )
    return Split(images.unsqueeze(1), labels)


def _read(folder: Path, name: str, reader: Callable[[str], Tensor]) -> Tensor:
    path = _find(folder, name)
    if path is None:
        raise InputError(f"{folder} lacks {name} (or {name}.gz), which fmnist needs")
    try:
        if path.suffix != ".gz":
            return reader(str(path))
        with gzip.open(path) as packed, tempfile.NamedTemporaryFile() as plain:
            shutil.copyfileobj(packed, plain)
            plain.flush()
            return reader(plain.name)
    except _DAMAGE as error:
        raise InputError(f"damaged file {path}: {error or type(error).__name__}; fetch it again") from error
