"""Image files to one array, kept in a cache so that the next run need not decode them again."""

from __future__ import annotations

import hashlib
import os
import tempfile
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from hfp.data.request import cache_home
from hfp.errors import InputError

_RECIPE = 1  # raise it when the same files would decode to other pixels, so that arrays kept before are not taken
_GREY_MODES = frozenset({"1", "L", "LA", "I", "I;16", "F"})


def decode(root: Path, paths: Sequence[str], size: int, cache: bool) -> np.ndarray:
    """Images as uint8 `[samples, channels, size, size]`, cropped about the centre and resized.

    One channel when every image is grey, else three. With `cache`, the array is kept under `cache_home()`, named
    after the files' paths, sizes and times of change; that folder can be deleted at any time.

    Raises:
        InputError: an image that can't be decoded.
    """
    if not cache:
        return _decode_all(paths, size)
    stored = cache_home() / "images" / f"{_key(root, paths, size)}.npy"
    array = _read(stored, len(paths), size)
    if array is None:
        array = _decode_all(paths, size)
        _write(stored, array)
    return array


def _decode_all(paths: Sequence[str], size: int) -> np.ndarray:
    images = np.empty((len(paths), size, size, 3), dtype=np.uint8)
    grey = True
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for position, (image, is_grey) in enumerate(pool.map(_decode_one, paths, repeat(size))):
            images[position] = image
            grey = grey and is_grey
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2)[:, : 1 if grey else 3])


def _decode_one(path: str, size: int) -> tuple[np.ndarray, bool]:
    try:
        with Image.open(path) as image:
            grey = image.mode in _GREY_MODES
            square = ImageOps.fit(image.convert("RGB"), (size, size), Image.Resampling.BILINEAR)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"can't decode image {path}: {error}; remove or replace it") from error
    return np.asarray(square), grey


def _key(root: Path, paths: Sequence[str], size: int) -> str:
    digest = hashlib.sha256(f"{_RECIPE}\n{root.resolve()}\n{size}\n".encode())
    for path in paths:
        status = os.stat(path)
        digest.update(f"{os.path.relpath(path, root)}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _read(stored: Path, samples: int, size: int) -> np.ndarray | None:
    try:
        with stored.open("rb") as file:
            array = np.lib.format.read_array(file, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    fits = array.dtype == np.uint8 and array.shape in {(samples, channels, size, size) for channels in (1, 3)}
    return array if fits else None


def _write(stored: Path, array: np.ndarray) -> None:
    try:
        stored.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=stored.parent, suffix=".part", delete=False) as part:
            try:
                np.save(part, array)
                part.close()
                os.replace(part.name, stored)
            except BaseException:
                os.unlink(part.name)
                raise
    except OSError as error:
        warnings.warn(f"decoded images are not cached in {stored.parent}: {error}", stacklevel=2)
