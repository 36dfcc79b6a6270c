"""Give every client the training samples that are its own: as the data set, a file, or the caller says."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from hfp.data.dataset import Dataset
from hfp.data.partition import FEWEST
from hfp.data.tree import numbered
from hfp.errors import InputError, counted, listed
from hfp.settings import shown

_DIGITS = 18  # an index has no more, so that it is one of int64

Entries = Mapping[str, Sequence[Any]]
"""Of every client by name: the files or indices of its samples."""


def parts_of_owners(owners: Tensor | None, clients: int, name: str) -> list[np.ndarray]:
    """Deal samples out by the client that each of them belongs to.

    Args:
        owners: the client of every training sample, int64 `[samples]`, from 0 to `clients` - 1.
        clients: how many clients there are.
        name: what errors call the data set.

    Raises:
        InputError: the data set says nothing of clients, or of another number of them, or a client has fewer samples
            than `checked_parts` takes.
    """
    if owners is None:
        raise InputError(
            f"partition own needs data whose samples belong to clients, such as folders client_0/<class>, "
            f"client_1/<class>; data set {name} says nothing of clients: take another partition or give clients_file"
        )
    found = int(owners.max()) + 1
    if found != clients:
        raise InputError(f"clients must be {found}, as many as data set {name} has; found {clients}")
    parts = [np.flatnonzero(owners.cpu().numpy() == client) for client in range(clients)]
    return checked_parts(parts, len(owners), f"data set {name}")


def read_clients_file(path: Path) -> Entries:
    """Read which samples each client has from a table in CSV, or from JSON.

    A CSV file has the heading ``file,client`` or ``index,client``, and a line for each image. A JSON file has a table
    of clients, each with a list of files or indices, or a list of such lists.

    Raises:
        InputError: the file can't be read, or has another form.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"the clients file {path} can't be read: {getattr(error, 'strerror', None) or error}"
        ) from error
    return _from_csv(path, text) if path.suffix.lower() == ".csv" else _from_json(path, text)


def _from_csv(path: Path, text: str) -> Entries:
    try:
        rows = list(csv.reader(io.StringIO(text)))
    except csv.Error as error:
        raise InputError(f"the clients file {path} can't be read as CSV: {error}") from error
    heading = [cell.strip().lower() for cell in rows[0]] if rows else []
    if sorted(heading) not in (["client", "file"], ["client", "index"]):
        raise InputError(f"{path} must begin with the line file,client or index,client; found {','.join(heading)!r}")
    of_client, of_sample = heading.index("client"), 1 - heading.index("client")
    found: dict[str, list[Any]] = {}
    for line, row in enumerate(rows[1:], 2):
        if not row:
            continue
        if len(row) != 2 or not all(cell.strip() for cell in row):
            raise InputError(f"{path}, line {line}, must be {','.join(heading)}; found {','.join(row)!r}")
        sample = row[of_sample].strip()
        if "index" in heading and not (sample.isdecimal() and len(sample) <= _DIGITS):
            raise InputError(f"{path}, line {line}: an index is a whole number from 0 on; found {shown(sample)}")
        found.setdefault(row[of_client].strip(), []).append(int(sample) if "index" in heading else sample)
    return found


def _from_json(path: Path, text: str) -> Entries:
    try:
        found = json.loads(text, object_pairs_hook=_named_once)
    except InputError as error:
        raise InputError(f"{path} {error}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"the clients file {path} is neither CSV, by its name, nor JSON: {error}") from error
    if isinstance(found, list):
        found = {str(client): entries for client, entries in enumerate(found)}
    lists: list[Any] = list(found.values()) if isinstance(found, dict) else [None]
    if not all(isinstance(entries, list) and all(type(one) in (str, int) for one in entries) for entries in lists):
        raise InputError(f"{path} must hold a table of clients, each with a list of files or of indices")
    if len({type(one) for entries in lists for one in entries}) > 1:
        raise InputError(f"{path} must name samples by files or by indices alone; it has both")
    return found


def _named_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a table of its entries; JSON itself takes the last of two that have one name."""
    twice = [name for name, times in Counter(name for name, _ in pairs).items() if times > 1]
    if twice:
        raise InputError(f"lists the client {shown(twice[0])} more than once; give it one list")
    return dict(pairs)


def parts_in_file(path: Path, dataset: Dataset, clients: int) -> tuple[list[np.ndarray], tuple[str, ...]]:
    """Deal the training samples out as a file says.

    Args:
        path: the file (`read_clients_file`). Clients are numbered in the order of their names.
        dataset: the data set. Files are named relative to its root, as in ``train/cat/1.jpg``. Test images may be in
            the file too, since it may have been written before some were held out for testing; they stay test images.
        clients: how many clients there are.

    Returns:
        Each client's indices into the training split, and sentences about what was left out.

    Raises:
        InputError: the file can't be read or fails `checked_parts`, has another number of clients, or names a file that
            the data set does not have.
    """
    found = read_clients_file(path)
    names = sorted(found, key=numbered)
    if len(names) != clients:
        raise InputError(f"clients must be {len(names)}, as many as {path} has; found {clients}")
    by_file = any(isinstance(one, str) for entries in found.values() for one in entries)
    if not by_file:
        return checked_parts([found[name] for name in names], len(dataset.train), str(path), names=names), ()
    files = {name: [str(Path(one)) for one in found[name]] for name in names}
    trained, tested = {file: index for index, file in enumerate(dataset.train.files)}, set(dataset.test.files)
    _check_known(path, [one for mine in files.values() for one in mine], trained.keys() | tested, dataset)
    parts = [[trained[one] for one in files[name] if one in trained] for name in names]
    left_out = sum(one in tested for mine in files.values() for one in mine)
    notes = (f"{left_out:,} images of {path} are test images and belong to nobody",) if left_out else ()
    return checked_parts(parts, len(dataset.train), str(path), names=names, samples=dataset.train.files), notes


def _check_known(path: Path, named: Sequence[str], known: Collection[str], dataset: Dataset) -> None:
    lost = [one for one in named if one not in known]
    if lost:
        have = f"its files are like {dataset.train.files[0]}" if dataset.train.files else "name its samples by index"
        raise InputError(
            f"{path} names {counted(len(lost), 'file')} that data set {dataset.name} does not have, "
            f"such as {listed(lost[:3])}; {have}"
        )


def checked_parts(
    parts: Sequence[Iterable[int]],
    total: int,
    where: str,
    *,
    names: Sequence[str] = (),
    samples: Sequence[str] = (),
) -> list[np.ndarray]:
    """Check the samples of each client, and return them as ascending indices.

    Args:
        parts: each client's indices into the training split.
        total: how many training samples there are.
        where: what errors call the place that the indices are from.
        names: what errors call the clients, by default their numbers.
        samples: what errors call the samples, by default their numbers.

    Raises:
        InputError: an index is none of the training split's, a sample is listed twice, or a client has fewer than two
            samples, of which batch-norm can't take statistics.

    >>> [part.tolist() for part in checked_parts([[3, 0], [1, 2]], 5, "partition")]
    [[0, 3], [1, 2]]
    """
    counts: Counter[int] = Counter()
    made = []
    for client, part in enumerate(parts):
        who = f"{where}: client {names[client] if names else client}"
        indices = sorted(map(int, part))
        if len(indices) < FEWEST:
            raise InputError(f"{who} has {len(indices)} training samples; it needs {FEWEST} at least")
        outside = [index for index in indices if not 0 <= index < total]
        if outside:
            raise InputError(
                f"{who} has sample {shown(outside[0])}; the {total:,} training samples are numbered from 0"
            )
        counts.update(indices)
        made.append(np.array(indices, dtype=np.int64))
    twice = sorted(index for index, times in counts.items() if times > 1)
    if twice:
        some = listed([samples[index] if samples else str(index) for index in twice[:3]])
        number = counted(len(twice), "sample")
        raise InputError(f"{where} lists {number} more than once, such as {some}; each has one client")
    return made
