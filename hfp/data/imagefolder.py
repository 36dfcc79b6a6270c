"""Load any folder tree of images with one folder per class."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch

from hfp.data.dataset import Dataset, Split, make_dataset
from hfp.data.decode import Decoded, Undecodable, decode, printable
from hfp.data.pixels import ANIMATED, DEEP, TRANSPARENT
from hfp.data.request import DataRequest
from hfp.data.stratify import stratified_halves
from hfp.data.tree import Listing, find_layout, list_images
from hfp.errors import InputError, listed

_TEST_SHARE = 0.2
_DEFAULT_SIZE = 32
_SAID = {
    DEEP: "images of more than 8 bits are scaled to 8",
    ANIMATED: "animated images or files of several pages count with the first",
    TRANSPARENT: "images lose their transparency",
}


def load_imagefolder(request: DataRequest) -> Dataset:
    """Read an image tree under the request's root, such as `root/train/<class>/*` and `root/test/<class>/*`.

    Splits may have the names in `hfp.data.tree.SPLIT_NAMES`. A tree may have no splits (`root/<class>/*`) or just one.
    Then a fifth of every class, drawn by the seed, is taken for testing. Where the training images lie in folders of
    clients (`client_0/<class>/*`, `client_1/<class>/*`), the data set has their `owners`. The data set's `notes` say
    what was assumed.

    Raises:
        InputError: there are no class folders, or there is just one; a class has no images; the splits have different
            classes; or images can't be decoded, all of which are named.
    """
    return load_tree(request, size=request.image_size or _DEFAULT_SIZE)


def load_tree(request: DataRequest, size: int) -> Dataset:
    """Read an image tree under the request's root; images are cut to `size` × `size` pixels about their centre."""
    layout = find_layout(request.folder)
    train = list_images(layout.train, layout.clients)
    left_out = Counter(train.left_out)
    if layout.test is None:
        train, test = _held_out(layout.train, train, request.seed)
        held_out = f"no test split found: {_TEST_SHARE:.0%} of every class is held out, drawn by seed {request.seed}"
        notes = (*layout.notes, held_out)
    else:
        test, notes = list_images(layout.test), layout.notes
        left_out += test.left_out
        _check_same_classes(layout.train, train, layout.test, test)
    train = train.at(request.select(train.labels))
    arrays = _decode_both(request.folder, train, test, size, request.cache)
    channels = max(array.images.shape[1] for array in arrays)
    first, second = (
        Split(
            torch.from_numpy(array.images).expand(-1, channels, -1, -1),
            torch.from_numpy(listing.labels),
            tuple(os.path.relpath(path, request.folder) for path in listing.paths.tolist()),
        )
        for array, listing in zip(arrays, (train, test), strict=True)
    )
    notes += (*_findings(arrays), *_left_out(left_out))
    return make_dataset(request.name, first, second, train.classes, notes, owners=_owners(train))


def _owners(files: Listing) -> torch.Tensor | None:
    return None if files.owners is None else torch.from_numpy(files.owners)


def _held_out(folder: Path, files: Listing, seed: int) -> tuple[Listing, Listing]:
    counts = np.bincount(files.labels)
    if counts.min() < 2:
        name = files.classes[counts.argmin()]
        raise InputError(f"class {name} in {printable(folder)} has one image; a split needs two or more per class")
    train, test = stratified_halves(files.labels, _TEST_SHARE, seed)
    return files.at(train), files.at(test)


def _check_same_classes(folder: Path, train: Listing, test_folder: Path, test: Listing) -> None:
    if train.classes != test.classes:
        odd = sorted(set(train.classes) ^ set(test.classes))
        raise InputError(
            f"{printable(folder)} and {printable(test_folder)} hold different classes; only one has {listed(odd)}"
        )


def _decode_both(root: Path, train: Listing, test: Listing, size: int, cache: bool) -> list[Decoded]:
    """Decode both splits, so that the error about images that can't be decoded names those of both."""
    arrays: list[Decoded] = []
    problems: dict[str, str] = {}
    for files in (train, test):
        try:
            arrays.append(decode(root, files.paths.tolist(), size, cache))
        except Undecodable as error:
            problems |= error.problems
    if problems:
        raise Undecodable(problems, len(train.paths) + len(test.paths))
    return arrays


def _findings(arrays: Iterable[Decoded]) -> Iterator[str]:
    found: Counter[str] = Counter()
    for array in arrays:
        found.update(array.findings)
    for finding, what in _SAID.items():
        if found[finding]:
            yield f"{found[finding]:,} {what}"


def _left_out(left_out: Counter[str]) -> Iterator[str]:
    if left_out:
        kinds = [f"{count:,} {kind}" for kind, count in sorted(left_out.items())]
        yield f"files left out: {listed(kinds)}"
