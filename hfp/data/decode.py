"""Decode image files into one array.

The array is kept in a cache and mapped from there, so that images are decoded once and need not fit in memory.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path
from typing import IO

import numpy as np

from hfp.data import rows
from hfp.data.mapping import mapped
from hfp.data.pixels import LARGEST_SIDE, DecodedImage, Unreadable, images_bounded, read_picture
from hfp.data.request import cache_home
from hfp.errors import InputError, listed
from hfp.settings import shown

_RECIPE = 2  # raise this when the same files would decode to other pixels, so that older arrays are not used
_CHUNK_BYTES = 2**25
_PART, _ABANDONED = ".part", 3600  # unfinished files, and the seconds after which nobody finishes one


@dataclass(frozen=True, eq=False)
class Decoded:
    """Decoded images, and how many of them have each finding.

    Large arrays are mapped from a file: only what is looked at is read, and writing to them changes no file.

    Args:
        images: uint8 `[samples, channels, size, size]`.
        findings: the number of images by finding of `hfp.data.pixels`.
    """

    images: np.ndarray
    findings: Mapping[str, int]


class Undecodable(InputError):
    """Some images can't be decoded; `problems` are the reasons by path."""

    def __init__(self, problems: Mapping[str, str], samples: int) -> None:
        """Name all files in one line."""
        self.problems, self.samples = dict(problems), samples
        reasons = [f"{printable(path)}: {reason}" for path, reason in problems.items()]
        if len(reasons) == 1:
            super().__init__(f"can't decode image {reasons[0]}; remove or replace it")
        else:
            what = f"can't decode {len(reasons)} of {samples} images"
            super().__init__(f"{what}: {listed(reasons, '; ')}; remove or replace them")


def printable(path: str | Path) -> str:
    """Return a path as it can be shown: bytes that are not UTF-8 and control characters are escaped."""
    text = os.fsencode(path).decode(errors="backslashreplace")
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def decode(root: Path, paths: Sequence[str], size: int, cache: bool) -> Decoded:
    """Decode images, cropped about the centre and resized to `size` × `size` pixels.

    The result has one channel when every image is grey, else three.

    Args:
        root: the folder that the images are in.
        paths: the images.
        size: the side of the decoded images in pixels.
        cache: whether the array is kept under `cache_home()`. It is named after the files' paths, sizes and times of
            change, and is mapped from there when large. The folder can be deleted at any time.

    Raises:
        Undecodable: some images can't be decoded; the error names all of them.
        InputError: images of that size are larger than any that is decoded, or do not fit into memory.
    """
    if size > LARGEST_SIDE:
        raise InputError(f"image_size must be at most {LARGEST_SIDE:,} pixels; found {shown(size)}")
    if not cache:
        return _in_memory(paths, size)
    stored = cache_home() / "images" / f"{_key(root, paths, size)}.npy"
    known = _read(stored, len(paths), size)
    if known is not None:
        return known
    try:
        _store(stored, paths, size)
    except OSError as error:
        warnings.warn(f"decoded images are not cached in {stored.parent}: {error}", stacklevel=2)
        return _in_memory(paths, size)
    return _read(stored, len(paths), size) or _in_memory(paths, size)


@dataclass
class _Pass:
    """What a pass over the files has found so far."""

    grey: bool = True
    findings: Counter[str] = field(default_factory=Counter)
    problems: dict[str, str] = field(default_factory=dict)

    def check(self, samples: int) -> None:
        if self.problems:
            raise Undecodable(self.problems, samples)


def _decode_all(paths: Sequence[str], size: int, found: _Pass) -> Iterator[np.ndarray]:
    """Yield arrays `[samples, 3, size, size]` of a few images each, in order."""
    several = max(1, _CHUNK_BYTES // (3 * size * size))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(paths), several):
            part = paths[start : start + several]
            images = np.zeros((len(part), size, size, 3), dtype=np.uint8)
            with images_bounded():
                for position, picture in enumerate(pool.map(_try, part, repeat(size))):
                    if isinstance(picture, str):
                        found.problems[part[position]] = picture
                        continue
                    images[position] = picture.pixels
                    found.grey = found.grey and picture.grey
                    found.findings.update(picture.findings)
            yield np.ascontiguousarray(images.transpose(0, 3, 1, 2))


def _try(path: str, size: int) -> DecodedImage | str:
    try:
        return read_picture(path, size)
    except Unreadable as error:
        return str(error)


def _in_memory(paths: Sequence[str], size: int) -> Decoded:
    found, end = _Pass(), 0
    try:
        images = np.empty((len(paths), 3, size, size), dtype=np.uint8)
    except MemoryError as error:
        raise InputError(
            f"{len(paths):,} images of {size}x{size} pixels do not fit into memory; take a smaller image_size"
        ) from error
    for part in _decode_all(paths, size, found):
        images[end : end + len(part)] = part
        end += len(part)
    found.check(len(paths))
    return Decoded(np.ascontiguousarray(images[:, :1]) if found.grey else images, dict(found.findings))


def _key(root: Path, paths: Sequence[str], size: int) -> str:
    digest = hashlib.sha256(b"%d\n%s\n%d\n" % (_RECIPE, os.fsencode(root.resolve()), size))
    for path in paths:
        status = os.stat(path)
        digest.update(os.fsencode(os.path.relpath(path, root)))
        digest.update(f"\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _store(stored: Path, paths: Sequence[str], size: int) -> None:
    """Decode into a file: it holds an .npy array, and behind it a line of JSON with the findings."""
    found, shape = _Pass(), (len(paths), 3, size, size)
    stored.parent.mkdir(parents=True, exist_ok=True)
    _clear_parts(stored.parent)
    with _part(stored) as colour:
        _write(colour, shape, _decode_all(paths, size, found))
        found.check(len(paths))
        if not found.grey:
            _finish(colour, stored, found)
            return
        colour.flush()
        whole = _mapped(colour, shape)
        assert whole is not None  # the file was just written
        several = max(1, _CHUNK_BYTES // (3 * size * size))
        with _part(stored) as grey:
            starts = range(0, len(paths), several)
            _write(grey, (len(paths), 1, size, size), (whole[start : start + several, :1] for start in starts))
            _finish(grey, stored, found)


def _clear_parts(folder: Path) -> None:
    """Remove what killed processes left: a file that is being written is never so old."""
    for part in folder.glob(f"*{_PART}"):
        with suppress(OSError):
            if time.time() - part.stat().st_mtime > _ABANDONED:
                part.unlink()


@contextmanager
def _part(stored: Path) -> Iterator[IO[bytes]]:
    """Yield a file beside `stored` that is removed afterwards, unless it was finished."""
    with tempfile.NamedTemporaryFile(dir=stored.parent, suffix=_PART, delete=False) as part:
        try:
            yield part
        finally:
            Path(part.name).unlink(missing_ok=True)


def _write(file: IO[bytes], shape: tuple[int, ...], parts: Iterable[np.ndarray]) -> None:
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
    for part in parts:
        file.write(part.tobytes())


def _finish(part: IO[bytes], stored: Path, found: _Pass) -> None:
    part.write(json.dumps(found.findings, sort_keys=True).encode() + b"\n")
    part.close()
    os.replace(part.name, stored)


def _read(stored: Path, samples: int, size: int) -> Decoded | None:
    """Return what a file keeps; None when there is no file, or it is damaged or of other images."""
    try:
        with stored.open("rb") as file:
            for channels in (1, 3):
                images = _mapped(file, (samples, channels, size, size))
                if images is not None:
                    kept = images if images.nbytes >= rows.LARGE_BYTES else images.copy()
                    return Decoded(kept, _findings(file.read()))
    except (OSError, ValueError):
        pass
    return None


def _mapped(file: IO[bytes], shape: tuple[int, ...]) -> np.ndarray | None:
    """Return the array of that shape in a file, mapped; None when the file holds another.

    The file is then positioned behind the array.
    """
    file.seek(0)
    if np.lib.format.read_magic(file) != (1, 0):
        return None
    found, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
    start, count = file.tell(), int(np.prod(shape, dtype=np.int64))
    complete = os.fstat(file.fileno()).st_size >= start + count
    if not complete or (found, fortran_order, dtype) != (shape, False, np.dtype(np.uint8)):
        return None
    file.seek(start + count)
    return np.frombuffer(mapped(file.fileno()), np.uint8, count, start).reshape(shape)


def _findings(text: bytes) -> dict[str, int]:
    found = json.loads(text)
    if not isinstance(found, dict) or not all(isinstance(count, int) for count in found.values()):
        raise ValueError("no findings")
    return found
