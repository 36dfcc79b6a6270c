"""Find the splits of an image tree and list the files in them; what is assumed is noted."""

from __future__ import annotations

import os
import re
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from hfp.data.decode import printable
from hfp.data.pixels import EXTENSIONS
from hfp.errors import InputError, listed

TRAIN, TEST, VALIDATION = "train", "test", "validation"
SPLIT_NAMES = {
    "train": TRAIN,
    "training": TRAIN,
    "test": TEST,
    "testing": TEST,
    "val": VALIDATION,
    "valid": VALIDATION,
    "validation": VALIDATION,
    "dev": VALIDATION,
    "eval": VALIDATION,
    "evaluation": VALIDATION,
}
"""Folders with these names are splits, in capitals or not."""

_CLIENT = re.compile(r"client[-_ ]?\w+", re.IGNORECASE)
"""Where all folders have such names and hold folders, they are clients, and what they hold are classes."""

_DEEPEST = 4  # this many folders that hold nothing but another folder are entered
_TREE = "is not a tree of images with one folder per class"
_NO_CLASS = "a class must not have the name of a split"


@dataclass(frozen=True)
class Layout:
    """The folders of the splits.

    Args:
        train: the folder of the training split.
        test: the folder of the test split. None means that a part of `train` is to be taken for testing.
        notes: what was assumed.
        clients: the folders of clients in `train`, each with folders of classes. By default the classes are in `train`.
    """

    train: Path
    test: Path | None
    notes: tuple[str, ...] = ()
    clients: tuple[str, ...] = ()


def find_layout(root: Path) -> Layout:
    """Find the splits under a root, which may be a level or more too high.

    Raises:
        InputError: splits can't be told apart from classes or from each other, or there are several data sets.
    """
    place = _first_fork(root)
    notes: tuple[str, ...] = () if place == root else (f"the images are those of {printable(place)}",)
    folders = _folders(place)
    splits: dict[str, list[str]] = {}
    for name in folders:
        if _kind(name):
            splits.setdefault(_kind(name), []).append(name)
    clients = _clients(place, [name for name in folders if not _kind(name)])
    if not splits and not clients:
        _refuse_several(place, folders)
        _refuse_shared(place, folders)
        return Layout(place, None, notes)
    for kind, names in splits.items():
        if len(names) > 1:
            raise InputError(f"{printable(place)} has several folders of the {kind} split: {_names(names)}; keep one")
    found = {kind: names[0] for kind, names in splits.items()}
    if clients and TRAIN not in found:
        test = found.get(TEST) or found.get(VALIDATION)
        return Layout(place, place / test if test else None, notes, clients)
    train = found.get(TRAIN) or (next(iter(found.values())) if len(folders) == 1 else None)
    if train is None:
        raise InputError(
            f"{printable(place)} has {_names(folders)}, but no folder train: expected train/<class>/* and "
            f"test/<class>/*; {_NO_CLASS}"
        )
    test = next((found[kind] for kind in (TEST, VALIDATION) if kind in found and found[kind] != train), None)
    unused = [name for name in folders if name not in (train, test)]
    notes += (f"not used: {_names(unused)} of {printable(place)}",) * bool(unused)
    clients = _clients(place / train, _folders(place / train))
    if not clients:
        _refuse_shared(place / train, _folders(place / train))
    return Layout(place / train, None if test is None else place / test, notes, clients)


def _clients(place: Path, folders: Sequence[str]) -> tuple[str, ...]:
    """Return the folders where all of them are those of clients, in the order of their numbers."""
    if not all(
        _CLIENT.fullmatch(name) and _folders(place / name) and not _has_images(place / name) for name in folders
    ):
        return ()
    return tuple(sorted(folders, key=numbered))


def numbered(name: str) -> list[tuple[int, str]]:
    """Return what names are ordered by so that client_10 comes after client_9."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name) if part]


def has_splits(root: Path) -> bool:
    """Return whether a folder holds a training split and another split."""
    kinds = {_kind(name) for name in _folders(root)} - {""} if root.is_dir() else set()
    return TRAIN in kinds and len(kinds) > 1


def _kind(name: str) -> str:
    return SPLIT_NAMES.get(name.casefold(), "")


def _first_fork(root: Path) -> Path:
    """Return the first folder, from the root down, that holds splits, several folders, or images."""
    place = root
    for _ in range(_DEEPEST):
        folders = _folders(place)
        if len(folders) != 1 or _kind(folders[0]) or _has_images(place / folders[0]):
            break
        if not _folders(place / folders[0]):
            break
        place = place / folders[0]
    return place


def _refuse_several(place: Path, folders: Sequence[str]) -> None:
    """Refuse folders that would be classes but hold splits themselves."""
    holding = [name for name in folders if any(_kind(inner) for inner in _folders(place / name))]
    if holding:
        places = [printable(place / name) for name in holding]
        raise InputError(
            f"{printable(place)} is not a data set, but {listed(places)} hold{'s' * (len(places) == 1)} splits: give "
            f"{'one of them' if len(places) > 1 else 'it'} with --data-root"
        )


def _refuse_shared(place: Path, folders: Sequence[str]) -> None:
    """Refuse folders that hold the same folders, as splits or clients of any name would."""
    unclear = [name for name in folders if not _kind(name) and not _has_images(place / name)]
    holding = {name: set(_folders(place / name)) for name in unclear}
    counts = Counter(inner for inside in holding.values() for inner in inside)
    shared = sorted(inner for inner, count in counts.items() if count > 1)
    if len(shared) > 1:
        outer = [name for name, inside in holding.items() if inside & set(shared)]
        raise InputError(
            f"{printable(place)} has {_names(outer)}, which hold the same folders {_names(shared)}: it can't be told "
            "which of them are classes; call splits train and test, call clients client_1 and so on, "
            "or put the images of a class into its folder itself"
        )


@dataclass(frozen=True, eq=False)
class Listing:
    """The image files of a split with their labels and classes, and how many files of each kind were left out.

    Where the tree has folders of clients, `owners` has each file's client.
    """

    paths: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    left_out: Counter[str]
    owners: np.ndarray | None = None

    def at(self, chosen: np.ndarray) -> Listing:
        """Return the chosen files alone."""
        owners = None if self.owners is None else self.owners[chosen]
        return Listing(self.paths[chosen], self.labels[chosen], self.classes, self.left_out, owners)


@dataclass
class _Walk:
    """What a walk has come across.

    `seen` holds folders by device and inode; a folder that comes twice is reached through a link.
    """

    seen: dict[tuple[int, int], str] = field(default_factory=dict)
    files: list[tuple[str, str]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)


def list_images(folder: Path, clients: Sequence[str] = ()) -> Listing:
    """List the images below a folder of class folders, in the order of their classes, clients and paths.

    Links to files and folders elsewhere are followed. Hidden files and folders, and files that are not images, are left
    out and counted.

    Args:
        folder: the folder of the classes, or of the clients.
        clients: the folders of clients, each of which has class folders. A client need not have every class.

    Raises:
        InputError: there are no class folders, or there is just one; a class has no images; a folder is reached twice
            through a link; names can't be shown; or files can't be read.
    """
    classes = sorted({name for client in clients or ("",) for name in _folders(folder / client)})
    _check_classes(folder, classes)
    walk = _Walk(_with_parents(folder))
    walk.left_out.update("hidden" for name in os.listdir(folder) if name.startswith("."))
    paths: list[str] = []
    labels: list[int] = []
    owners: list[int] = []
    for label, name in enumerate(classes):
        for owner, client in enumerate(clients or ("",)):
            walk.files = []
            if not clients or (folder / client / name).is_dir():
                _walk(os.path.join(folder, client, name), walk)
            paths += [os.path.join(*file) for file in sorted(walk.files)]
            labels += [label] * len(walk.files)
            owners += [owner] * len(walk.files)
    if walk.problems:
        raise InputError(f"{len(walk.problems)} files below {printable(folder)}: {listed(walk.problems, '; ')}")
    _check_none_empty(folder, classes, set(labels))
    return Listing(
        np.array(paths),
        np.array(labels, dtype=np.int64),
        tuple(classes),
        walk.left_out,
        np.array(owners, dtype=np.int64) if clients else None,
    )


def _check_none_empty(folder: Path, classes: Sequence[str], present: set[int]) -> None:
    empty = [name for label, name in enumerate(classes) if label not in present]
    if empty:
        known = ", ".join(EXTENSIONS)
        raise InputError(
            f"{printable(folder)} {_TREE}: Found no valid file for the classes {_names(empty)} (known are {known})"
        )


def _check_classes(folder: Path, classes: Sequence[str]) -> None:
    if not classes:
        hint = f"; {_NO_CLASS}" if _kind(folder.name) else ""
        raise InputError(f"{printable(folder)} {_TREE}: couldn't find any class folder{hint}")
    odd = [name for name in classes if not name.isprintable()]
    if odd:
        raise InputError(f"classes must have names that can be shown, in UTF-8; rename {_names(odd)}")
    if len(classes) == 1:
        raise InputError(
            f"{printable(folder)} has the class {classes[0]} alone; two or more are needed, each in a folder of its own"
        )
    splits = [name for name in classes if _kind(name)]
    doubtful = splits if len(splits) == len(classes) else [name for name in splits if not _has_images(folder / name)]
    if doubtful:
        what = "are splits and not classes" if len(doubtful) > 1 else "is a split and not a class"
        raise InputError(
            f"{printable(folder)} holds {_names(doubtful)}, which {what}; "
            "give the folder of the splits with --data-root, or rename what is a class"
        )


def _walk(folder: str, walk: _Walk) -> None:
    for entry in _entries(folder, walk.seen):
        if entry.name.startswith("."):
            walk.left_out["hidden"] += 1
            continue
        try:
            mode = entry.stat().st_mode
        except OSError as error:
            walk.problems.append(f"{printable(entry.path)} can't be read: {error.strerror}")
            continue
        extension = os.path.splitext(entry.name)[1].lower()
        if stat.S_ISDIR(mode):
            _walk(entry.path, walk)
        elif extension not in EXTENSIONS:
            walk.left_out[extension or "no extension"] += 1
        elif not stat.S_ISREG(mode):
            walk.problems.append(f"{printable(entry.path)} is not a file")
        else:
            walk.files.append((folder, entry.name))


def _entries(folder: str, seen: dict[tuple[int, int], str]) -> Iterator[os.DirEntry[str]]:
    try:
        status = os.stat(folder)
        earlier = seen.setdefault((status.st_dev, status.st_ino), folder)
        if earlier != folder:
            raise InputError(
                f"{printable(folder)} is {printable(earlier)} once more, through a link; its images would count twice"
            )
        with os.scandir(folder) as entries:
            yield from entries
    except OSError as error:
        raise InputError(f"{printable(folder)} can't be read: {error.strerror}") from error


def _with_parents(folder: Path) -> dict[tuple[int, int], str]:
    """Return a folder and all above it, which nothing below may be a link to."""
    place = folder.resolve()
    return {(status.st_dev, status.st_ino): str(up) for up in (place, *place.parents) if (status := up.stat())}


def _folders(folder: Path) -> list[str]:
    """List the names of the folders in a folder, without hidden ones."""
    return sorted(
        entry.name for entry in _entries(str(folder), {}) if not entry.name.startswith(".") and _is_dir(entry)
    )


def _is_dir(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # the entry is a link to itself
        return False


def _has_images(folder: Path) -> bool:
    return any(os.path.splitext(entry.name)[1].lower() in EXTENSIONS for entry in _entries(str(folder), {}))


def _names(names: Sequence[str]) -> str:
    return listed([printable(name) for name in names])
