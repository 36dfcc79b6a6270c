"""Find and load data sets by name."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING

from hfp.data.request import DataRequest
from hfp.errors import InputError, unknown
from hfp.paths import of_home

if TYPE_CHECKING:
    from hfp.data.dataset import Dataset

_OWN: Mapping[str, str] = {
    "digits": "hfp.data.digits",
    "fmnist": "hfp.data.fmnist",
    "cifar10": "hfp.data.cifar",
    "cifar100": "hfp.data.cifar",
    "imagefolder": "hfp.data.imagefolder",
}
"""Each of these modules has a function ``load_NAME``. Names are known before torch is loaded."""
IMAGES: Mapping[str, tuple[int, int]] = {
    "digits": (1, 8), "fmnist": (1, 28), "cifar10": (3, 32), "cifar100": (3, 32),
}  # fmt: skip
"""The channels and the side in pixels of the images of a data set of one size."""
_LOADERS: dict[str, Callable[[DataRequest], Dataset]] = {}


def register_dataset(name: str, load: Callable[[DataRequest], Dataset]) -> None:
    """Make a data set of your own known by `name` to everything that takes the names of data sets.

    A second call with the same name replaces the first. What the loader returns is checked whenever it is loaded.

    Args:
        name: what the data set is called from now on, in this process.
        load: a function that takes a `hfp.data.DataRequest` (root folder, which training images to keep) and returns a
            `Dataset`. `hfp.data.make_dataset` makes one most simply.

    Raises:
        InputError: the name is one of hfp's own data sets.

    >>> import torch
    >>> from hfp.data import Split, load_dataset, make_dataset
    >>> def stripes(request):
    ...     labels = torch.arange(60) % 2
    ...     images = torch.zeros(60, 1, 8, 8)
    ...     images[labels == 1, :, ::2] = 1
    ...     chosen = torch.from_numpy(request.select(labels[:40].numpy()))
    ...     train, test = Split(images[chosen], labels[chosen]), Split(images[40:], labels[40:])
    ...     return make_dataset(request.name, train, test, ("plain", "striped"))
    >>> register_dataset("stripes", stripes)
    >>> len(load_dataset("stripes", limit=10).train)
    10
    """
    if name in _OWN:
        raise InputError(f"{name} is one of hfp's own data sets; give yours another name")
    _LOADERS[name] = load


def datasets() -> tuple[str, ...]:
    """Return the names that `load_dataset` knows, the registered ones last."""
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
    """Load a data set by its name.

    Images are kept in memory. Those of a large image folder stay in a file in the cache, and are read when they are
    looked at.

    Args:
        name: one of `datasets()`.
        root: the folder that holds the files. By default fmnist is looked for where its Debian package puts it, and
            everything else where downloads go.
        limit: how many training images to keep. They are a random subset, drawn by `seed`, in which every class keeps
            its share. By default all are kept. The test split always stays whole.
        download: whether to download what is missing (fmnist, cifar10, cifar100) into `root`, by default into
            `$XDG_CACHE_HOME/hfp`.
        seed: what draws the limited subset, and the test split of an image folder that has none.
        image_size: the side of an image folder's images in pixels, 32 by default.
        cache: whether decoded images are kept under `$XDG_CACHE_HOME/hfp`, which can be deleted at any time.

    Returns:
        The data set, checked. Its `description` says in one line what was found and what was assumed.

    Raises:
        InputError: the name is unknown, the data set is missing or damaged, an argument doesn't fit it, or a registered
            data set can't be trained and tested on (`hfp.data.dataset.check_dataset`).

    >>> digits = load_dataset("digits", limit=200)
    >>> digits.shape, len(digits.train), len(digits.test)
    ((1, 8, 8), 200, 359)
    """
    if name not in datasets():
        raise unknown("data set", name, datasets())
    if image_size is not None and (name != "imagefolder" or image_size < 1):
        raise InputError(f"image_size is a positive number and for imagefolder only, found {image_size} for {name}")
    check_root(root, name, download)
    folder = None if root is None else of_home(root)
    from hfp.data.dataset import Dataset, check_dataset

    load = getattr(import_module(_OWN[name]), f"load_{name}") if name in _OWN else _LOADERS[name]
    found = load(DataRequest(name, folder, limit, download, seed, image_size, cache))
    if not isinstance(found, Dataset):
        raise InputError(f"the loader of data set {name} must return a hfp.data.Dataset; found {type(found).__name__}")
    check_dataset(dataclasses.replace(found, name=name))
    return found


def check_root(root: str | os.PathLike[str] | None, name: str | None, download: bool = False) -> None:
    """Refuse a data root that does not fit the data set, before anything is loaded.

    Args:
        root: the folder that holds the files, if one is given.
        name: the data set's name; None where it is not known yet.
        download: whether missing files are downloaded to the folder, so that it need not be there.

    Raises:
        InputError: the folder is not there, the data set needs one, or it has no use for one.
    """
    if name == "digits" and (root is not None or download):
        raise InputError(
            "data set digits is part of scikit-learn; leave out the data root and the download, or name another data "
            "set"
        )
    if name == "imagefolder" and root is None:
        raise InputError("data set imagefolder needs the folder of the images: --data-root PATH")
    if name == "imagefolder" and download:
        raise InputError("data set imagefolder is a folder of your own; leave out the download")
    if root is not None and not download and not of_home(root).is_dir():
        raise InputError(f"the data root {of_home(root)} is not a folder")
