"""Data sets by name."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from hfp.data.request import DataRequest
from hfp.errors import InputError, unknown

if TYPE_CHECKING:
    from hfp.data.dataset import Dataset

_OWN: Mapping[str, str] = {
    "digits": "hfp.data.digits",
    "fmnist": "hfp.data.fmnist",
    "cifar10": "hfp.data.cifar",
    "cifar100": "hfp.data.cifar",
    "imagefolder": "hfp.data.imagefolder",
}
"""The modules of hfp's own data sets, each with a function ``load_NAME``: names are known before torch is loaded."""
_LOADERS: dict[str, Callable[[DataRequest], Dataset]] = {}


def register_dataset(name: str, load: Callable[[DataRequest], Dataset]) -> None:
    """Make a data set of your own known by `name`, to everything that takes names of data sets.

    `load` is given what was asked for (`hfp.data.Request`: root folder, which training images) and returns the images,
    most simply by `hfp.data.make_dataset`. Give the name again and the last one counts.

    Raises:
        InputError: the name is one of hfp's own data sets.
    """
    if name in _OWN:
        raise InputError(f"{name} is one of hfp's own data sets; give yours another name")
    _LOADERS[name] = load


def datasets() -> tuple[str, ...]:
    """The names that `load_dataset` knows."""
    return (*_OWN, *_LOADERS)


def load_dataset(
    name: str,
    root: str | os.PathLike[str] | None = None,
    *,
    limit: int | None = None,
    download: bool = False,
    seed: int = 0,
    image_size: int | None = None,
    cache: bool = True,
) -> Dataset:
    """Load a data set into memory.

    Args:
        name: one of `datasets()`.
        root: folder that holds the files; by default the Debian package of fmnist, else where downloads go.
        limit: number of training images to keep, a subset with the classes' shares drawn by `seed`; the test split
            stays whole.
        download: fetch what is missing (fmnist, cifar10, cifar100) into `root`, by default `$XDG_CACHE_HOME/hfp`.
        seed: draws the limited subset, and the split of an imagefolder that has none.
        image_size: side in pixels of imagefolder's images, 32 by default.
        cache: keep decoded images under `$XDG_CACHE_HOME/hfp`; it can be deleted at any time.

    Raises:
        InputError: an unknown name, a data set that is missing or damaged, an argument that doesn't fit it, or a
            registered data set that can't be trained and tested on (`hfp.data.dataset.check_splits`).
    """
    if name not in datasets():
        raise unknown("data set", name, datasets())
    if image_size is not None and (name != "imagefolder" or image_size < 1):
        raise InputError(f"image_size is a positive number and for imagefolder only, found {image_size} for {name}")
    folder = None if root is None else Path(root).expanduser()
    if folder is not None and not download and not folder.is_dir():
        raise InputError(f"the data root {folder} is not a folder")
    from hfp.data.dataset import Dataset, check_splits

    load = getattr(import_module(_OWN[name]), f"load_{name}") if name in _OWN else _LOADERS[name]
    found = load(DataRequest(name, folder, limit, download, seed, image_size, cache))
    if not isinstance(found, Dataset):
        raise InputError(f"the loader of data set {name} must return a hfp.data.Dataset; found {type(found).__name__}")
    check_splits(name, found.train, found.test, found.classes)
    if len(found.classes) < 2:
        raise InputError(f"data set {name} has the class {', '.join(found.classes)} alone; two or more are needed")
    return found
