"""Store an index map alone in a file, where the compact state is stored elsewhere."""

from __future__ import annotations

import os
from pathlib import Path

from hfp.reconstruct.errors import MapError
from hfp.reconstruct.files.checksum import check_checksum
from hfp.reconstruct.files.document import Document
from hfp.reconstruct.files.parts import (
    Vectors,
    entry_of,
    map_in,
    opened,
    stored_vectors,
    vector_in,
    vector_names,
    write_whole,
)
from hfp.reconstruct.files.pruned_file import libraries
from hfp.reconstruct.maps.index_map import IndexMap

_DOCUMENT = "hfp_index_map"


def save_index_map(index_map: IndexMap, path: str | os.PathLike[str]) -> Path:
    """Write an index map without any weights, which `load_index_map` reads.

    The file has the form of those of `save_pruned`, but holds no state. An existing file is replaced in one step or not
    at all.

    Args:
        index_map: the map.
        path: the file.

    Returns:
        The path.

    Raises:
        MapError: an attribute can't be stored, or the file's folder is not there.
        OSError: the file can't be written.

    >>> import torch
    >>> from hfp.reconstruct import IndexMap, TensorMap, load_index_map, save_index_map
    >>> rows = IndexMap({"weight": TensorMap((4, 2), (torch.tensor([1, 3]), None))})
    >>> load_index_map(save_index_map(rows, "rows.safetensors")) == rows
    True
    """
    vectors: Vectors = {}
    document = Document(
        tensors={name: entry_of(tensor, vectors) for name, tensor in index_map.tensors.items()},
        transient={name: entry_of(tensor, vectors) for name, tensor in index_map.transient.items()},
        tied={},
        attributes=index_map.attributes,
        skeleton=None,
        libraries=libraries(),
    ).dump()
    write_whole(Path(path), stored_vectors(vectors), {_DOCUMENT: document})
    return Path(path)


def load_index_map(path: str | os.PathLike[str]) -> IndexMap:
    """Read an index map that `save_index_map` wrote. Nothing is unpickled, and no code of the file is run.

    Raises:
        MapError: the file is missing, damaged, of another format version, or contradicts itself.

    >>> import torch
    >>> from hfp.reconstruct import IndexMap, TensorMap, load_index_map, save_index_map
    >>> path = save_index_map(IndexMap({"bias": TensorMap((3,), (torch.tensor([2]),))}), "bias.safetensors")
    >>> load_index_map(path)
    <IndexMap: 1 of 1 tensor cut by 1 set of kept channels; 1 of 3 entries kept (33.3 %)>
    """
    path = Path(path)
    with opened(path) as file:
        check_checksum(path)
        text = (file.metadata() or {}).get(_DOCUMENT)
        if text is None:
            raise MapError(f"{path} holds no index map; expected a file that save_index_map wrote")
        document = Document.parse(text)
        names = set(file.keys())
        odd = sorted(vector_names(document) ^ names)
        if odd:
            raise MapError(f"{path}: the file's vectors are not those it describes: {odd[:4]}")
        vectors = {name: vector_in(file, name) for name in sorted(names)}
    return map_in(document, vectors)
