"""What all files of index maps share: vectors of kept indices, how they are read, and how a file is written whole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from hfp.atomic import write_atomically
from hfp.reconstruct.errors import MapError
from hfp.reconstruct.files.checksum import with_checksum
from hfp.reconstruct.files.document import Document, TensorEntry
from hfp.reconstruct.maps.index_map import IndexMap, TensorMap

VECTOR = "hfp/kept/"  # names of index vectors; all other tensors are the compact state under its own names
Vectors = dict[tuple[int, ...], int]


def write_whole(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file with a checksum, in one step or not at all.

    Raises:
        MapError: its folder is not there, or it is a folder itself.
        OSError: the file can't be written. One that was there before is untouched then.
    """
    if not path.parent.is_dir():
        raise MapError(f"{path} can't be written: there is no folder {path.parent}; make it first")
    if path.is_dir():
        raise MapError(f"{path} can't be written: it is a folder; give the name of a file")
    try:
        content = with_checksum(save(dict(tensors), metadata=dict(metadata)))
    except SafetensorError as error:
        raise OSError(f"{path} can't be written: {error}") from error
    write_atomically(path, content)


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """A safetensors file, open.

    Raises:
        MapError: it is missing or damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except FileNotFoundError as error:
        raise MapError(f"there is no file {path}") from error
    except (SafetensorError, OSError) as error:
        raise MapError(f"{path} is not a whole safetensors file: {error}") from error


def entry_of(tensor: TensorMap, vectors: Vectors) -> TensorEntry:
    """Describe a tensor's map by the numbers of its index vectors; new ones are added to `vectors`."""
    numbers = (None if kept is None else vectors.setdefault(tuple(kept.tolist()), len(vectors)) for kept in tensor.kept)
    return TensorEntry(tensor.shape, tuple(numbers))


def stored_vectors(vectors: Vectors) -> dict[str, Tensor]:
    """The index vectors as the file's tensors."""
    return {f"{VECTOR}{number}": torch.tensor(indices, dtype=torch.int64) for indices, number in vectors.items()}


def vector_in(file: Any, name: str) -> Tensor:
    """Read an index vector.

    Raises:
        MapError: it is something else.
    """
    found = file.get_slice(name)
    if found.get_dtype() != "I64" or len(found.get_shape()) != 1:
        raise MapError(f"{name}: expected a vector of int64 indices, got {found.get_dtype()} {found.get_shape()}")
    return file.get_tensor(name).clone()


def vector_names(document: Document) -> set[str]:
    """The names of the index vectors that a document needs."""
    entries = [*document.tensors.values(), *document.transient.values()]
    return {f"{VECTOR}{number}" for entry in entries for number in entry.kept if number is not None}


def map_in(document: Document, vectors: Mapping[str, Tensor]) -> IndexMap:
    """The index map that a document describes.

    Raises:
        MapError: the indices do not fit the shapes.
    """
    tensors = {name: _tensor_map(name, entry, vectors) for name, entry in document.tensors.items()}
    transient = {name: _tensor_map(name, entry, vectors) for name, entry in document.transient.items()}
    return IndexMap(tensors, document.attributes, transient)


def _tensor_map(name: str, entry: TensorEntry, vectors: Mapping[str, Tensor]) -> TensorMap:
    kept = tuple(None if number is None else vectors[f"{VECTOR}{number}"] for number in entry.kept)
    try:
        return TensorMap(entry.shape, kept)
    except MapError as error:
        raise MapError(f"{name}: {error}") from None
