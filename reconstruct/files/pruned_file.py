"""Store a pruned model in one safetensors file.

It holds the compact state, the kept indices, the changed attributes, and where the model comes from.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from hfp.reconstruct.errors import MapError
from hfp.reconstruct.files.checksum import check_checksum
from hfp.reconstruct.files.document import Document
from hfp.reconstruct.files.parts import (
    VECTOR,
    Vectors,
    entry_of,
    map_in,
    opened,
    stored_vectors,
    vector_in,
    vector_names,
    write_whole,
)
from hfp.reconstruct.files.sizes import check_sizes
from hfp.reconstruct.files.skeletons import TimmModel
from hfp.reconstruct.files.watch import is_whole
from hfp.reconstruct.maps.index_map import IndexMap
from hfp.reconstruct.models.attributes import check
from hfp.reconstruct.models.compact import build, device_for, laid_out

_DOCUMENT = "hfp"  # the metadata key of the description; the checksum has the other one
_SMALL, _MOST_TIMES = 64 * 2**20, 100  # bytes that a file may have a model ask for: so many, and so many times its own
_LIBRARIES = ("hfp", "torch", "torch-pruning", "timm", "safetensors")


class PrunedModel(Protocol):
    """What `save_pruned` writes: a result of `hfp.prune`, or a `Pruned`."""

    @property
    def model(self) -> Any:
        """Return the compact model, or its state."""

    @property
    def index_map(self) -> IndexMap:
        """Return its place in the full model."""

    @property
    def metadata(self) -> Mapping[str, Any]:
        """Return how it was pruned."""


@dataclass(frozen=True, repr=False)
class Pruned:
    """A compact model and its place in the full one; `load_pruned` returns it and `save_pruned` takes it.

    Args:
        model: the compact model, in evaluation mode when it was loaded. To save, its state will do.
        index_map: its place in the full model, with the attributes that pruning changed.
        metadata: how it was pruned, as anything JSON can hold (criterion, budget, ...).

    >>> from torch import nn
    >>> from hfp.reconstruct import IndexMap, Pruned
    >>> layer = nn.Linear(2, 2)
    >>> Pruned(layer, IndexMap.identity(layer), {"criterion": "l1"})
    <Pruned: a Linear, 6 of 6 entries kept (100.0 %)>
    """

    model: Any
    index_map: IndexMap
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        """Return one line, however large the model is."""
        return f"<Pruned: a {type(self.model).__name__}, {self.index_map.entries_kept}>"


@dataclass(frozen=True)
class PrunedFile:
    """A checked file of a pruned model, without its weights; `read_pruned` returns it.

    Args:
        path: where the file is.
        index_map: which entries of the full model it holds.
        timm: the full model, if it is one of timm's. Otherwise a skeleton is needed to build the compact model.
        metadata: what the writer added (criterion, budget, ...).
        libraries: the version of each library that wrote the file.
        tied: the other name under which the same tensor is stored, by name.

    >>> import torch
    >>> from hfp.reconstruct import IndexMap, Pruned, read_pruned, save_pruned
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 2))
    >>> file = read_pruned(save_pruned(Pruned(model, IndexMap.identity(model), {}), "small.safetensors"))
    >>> sorted(file.state())
    ['0.bias', '0.weight', '2.bias', '2.weight']
    """

    path: Path
    index_map: IndexMap
    timm: TimmModel | None
    metadata: Mapping[str, Any]
    libraries: Mapping[str, str]
    tied: Mapping[str, str]

    def state(self) -> dict[str, Tensor]:
        """Read the compact state. Tied names share one tensor.

        Raises:
            MapError: the file changed since it was checked.
        """
        with opened(self.path) as file:
            stored = {name: file.get_tensor(name).clone() for name in self.index_map.tensors if name not in self.tied}
        state = {name: stored[self.tied.get(name, name)] for name in self.index_map.tensors}
        self.index_map.check_compact(state)
        return state


def save_pruned(
    pruned: PrunedModel,
    path: str | os.PathLike[str],
    *,
    timm: TimmModel | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> Path:
    """Write a pruned model to one safetensors file, which `load_pruned` reads.

    The tensors of the compact state keep their names, so that any reader of safetensors finds them. An existing file is
    replaced in one step or not at all.

    Args:
        pruned: what `hfp.prune` returned, or a `Pruned` of any compact model (or its state) and its index map.
        path: the file.
        timm: the full model, if it is one of timm's; `load_pruned` then needs no skeleton.
        metadata: what to add to `pruned.metadata`, as anything JSON can hold.

    Returns:
        The path.

    Raises:
        MapError: the state is not the compact one of the map, the timm model is not the full one, something can't be
            stored, or the file's folder is not there. Nothing was written then.
        OSError: the file can't be written. One that was there before is untouched then.

    >>> import hfp, tempfile, torch
    >>> full = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 2))
    >>> result = hfp.prune(full, torch.zeros(1, 4), hfp.Budget(ratio=0.5))
    >>> path = save_pruned(result, tempfile.mkdtemp() + "/half.safetensors")
    >>> load_pruned(path, full).model[0].out_features
    4
    """
    model, index_map = getattr(pruned, "model", None), getattr(pruned, "index_map", None)
    if model is None or not isinstance(index_map, IndexMap):
        raise MapError(
            "expected what hfp.prune returned, or a Pruned of a model and its IndexMap; found a "
            f"{type(pruned).__name__}{'' if index_map is None else f' with a {type(index_map).__name__}'}"
        )
    state = dict(model.state_dict() if isinstance(model, nn.Module) else model)
    index_map.check_compact(state)
    if timm is not None:
        _check_skeleton(timm.create("meta"), index_map, timm.name, named_by_file=True)
    tensors, document = _packed(state, index_map, timm, {**pruned.metadata, **(metadata or {})})
    path = Path(path)
    write_whole(path, tensors, {_DOCUMENT: document})
    return path


def read_pruned(path: str | os.PathLike[str]) -> PrunedFile:
    """Read and check everything in a file but the weights.

    No code from the file is run, nothing is unpickled, and no memory beyond the file's own size is asked for.

    Args:
        path: a file written by `save_pruned`.

    Returns:
        What the file says; its `state` reads the weights.

    Raises:
        MapError: the file is missing, damaged, of another kind or format version, or contradicts itself.

    >>> import torch
    >>> from hfp.reconstruct import IndexMap, Pruned, read_pruned, save_pruned
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 2))
    >>> read_pruned(save_pruned(Pruned(model, IndexMap.identity(model), {}), "small.safetensors")).index_map
    <IndexMap: 0 of 4 tensors cut; 44 of 44 entries kept (100.0 %)>
    """
    path = Path(path)
    with opened(path) as file:
        check_checksum(path)
        text = (file.metadata() or {}).get(_DOCUMENT)
        if text is None:
            raise MapError(f"{path} holds no pruned model: expected a file of hfp prune, hfp extract or save_pruned")
        document = Document.parse(text)
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        _check_names(document, shapes)
        vectors = {name: vector_in(file, name) for name in shapes if name.startswith(VECTOR)}
    index_map = map_in(document, vectors)
    for name, tensor in index_map.tensors.items():
        found = shapes[document.tied.get(name, name)]
        if found != tensor.compact_shape:
            raise MapError(f"{path}: {name} has shape {list(found)}, its indices say {list(tensor.compact_shape)}")
    return PrunedFile(
        path=path,
        index_map=index_map,
        timm=None if document.skeleton is None else TimmModel(*document.skeleton),
        metadata=document.metadata,
        libraries=document.libraries,
        tied=document.tied,
    )


def load_pruned(path: str | os.PathLike[str], skeleton: nn.Module | None = None) -> Pruned:
    """Build the compact model that a file holds.

    Args:
        path: a file written by `save_pruned`.
        skeleton: the full model, which gives the classes and the forward pass. It may have any weights, and is not
            changed. None is enough where the file names a timm model.

    Returns:
        The compact model in evaluation mode with the file's dtypes, its index map and the file's metadata. The file
        does not say the memory format: filters are in the skeleton's, such as `torch.channels_last`.

    Raises:
        MapError: `read_pruned` would raise it, or the skeleton is missing or is another model than the one that was
            pruned.

    >>> import torch
    >>> from hfp.reconstruct import IndexMap, Pruned, load_pruned, save_pruned
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 2))
    >>> path = save_pruned(Pruned(model, IndexMap.identity(model), {}), "small.safetensors")
    >>> again = load_pruned(path, skeleton=model)
    >>> again.model[0]
    Linear(in_features=4, out_features=6, bias=True)
    """
    file = read_pruned(path)
    if not isinstance(skeleton, nn.Module | None):
        raise MapError(f"the skeleton is the full model, a module, not {skeleton!r:.80}")
    if skeleton is None:
        if file.timm is None:
            raise MapError(f"{path} names no timm model; give the full model as `skeleton`")
        return _of_timm(file, file.timm)
    _check_skeleton(skeleton, file.index_map, str(path), named_by_file=False)
    return _built(file, skeleton)


def _of_timm(file: PrunedFile, timm: TimmModel) -> Pruned:
    """The compact model of a file that names its full model.

    It is built from a full model without weights. Only where that computes tensors which the file does not hold, the
    full model is made in memory, and then it may not be much larger than the file.
    """
    size = file.path.stat().st_size
    skeleton, cost = timm.outline(size)
    _check_skeleton(skeleton, file.index_map, str(file.path), named_by_file=True)
    found = _built(file, skeleton)
    if is_whole(found.model):
        return found
    most = _SMALL + _MOST_TIMES * size
    if cost > most:
        raise MapError(
            f"{file.path}: making the full {timm.name} takes {cost:,} bytes, and a file of {size:,} bytes may ask for "
            f"{most:,}; make the full model yourself and give it as `skeleton`"
        )
    return _built(file, timm.create())


def _built(file: PrunedFile, skeleton: nn.Module) -> Pruned:
    path, state, full = file.path, file.state(), skeleton.state_dict()
    for name, tensor in state.items():
        if tensor.is_floating_point() != full[name].is_floating_point():
            raise MapError(f"{path}: {name} is {tensor.dtype}, the skeleton has {full[name].dtype}")
    values = {
        name: laid_out(tensor.to(device_for(tensor, full[name]), copy=name in file.tied), full[name])
        for name, tensor in state.items()
    }
    return Pruned(build(skeleton, file.index_map, values).eval(), file.index_map, file.metadata)


def _packed(
    state: Mapping[str, Tensor], index_map: IndexMap, timm: TimmModel | None, metadata: Mapping[str, Any]
) -> tuple[dict[str, Tensor], str]:
    """Return the tensors that go into the file, by name, and the document."""
    for name, tensor in state.items():
        if tensor.is_meta or tensor.is_sparse or tensor.is_complex() or name.startswith(VECTOR):
            raise MapError(f"{name}: a {tensor.dtype} tensor on {tensor.device} of this name can't be saved")
    tied = _tied_names(state)
    vectors: Vectors = {}
    document = Document(
        tensors={name: entry_of(tensor, vectors) for name, tensor in index_map.tensors.items()},
        transient={name: entry_of(tensor, vectors) for name, tensor in index_map.transient.items()},
        tied=tied,
        attributes=index_map.attributes,
        skeleton=None if timm is None else (timm.name, dict(timm.arguments)),
        metadata=dict(metadata),
        libraries=libraries(),
    ).dump()
    stored = _apart({name: tensor.detach().cpu().contiguous() for name, tensor in state.items() if name not in tied})
    return {**stored, **stored_vectors(vectors)}, document


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors, of which those that lie in the memory of others are copies; safetensors refuses them."""
    seen: set[int] = set()
    found = {}
    for name, tensor in tensors.items():
        place = tensor.untyped_storage().data_ptr()
        found[name] = tensor.clone() if place in seen else tensor
        seen.add(place)
    return found


def libraries() -> dict[str, str]:
    """Return the versions of the libraries that matter to a saved model, as far as they are installed."""
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _tied_names(state: Mapping[str, Tensor]) -> dict[str, str]:
    first: dict[tuple[Any, ...], str] = {}
    tied = {}
    for name, tensor in state.items():
        place = (tensor.device, tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())
        if tensor.numel() and first.setdefault(place, name) != name:
            tied[name] = first[place]
    return tied


def _check_names(document: Document, shapes: Mapping[str, Any]) -> None:
    vectors = vector_names(document)
    stored = {name for name in document.tensors if name not in document.tied}
    for name, other in document.tied.items():
        if name not in document.tensors or other not in stored:
            raise MapError(f"the file ties {name!r} to {other!r}, which it does not hold")
    missing, surplus = (vectors | stored) - shapes.keys(), shapes.keys() - (vectors | stored)
    if missing or surplus:
        raise MapError(
            f"the file's tensors are not those it describes; missing {sorted(missing)[:4]}, "
            f"unexpected {sorted(surplus)[:4]}"
        )


def _check_skeleton(skeleton: nn.Module, index_map: IndexMap, where: str, *, named_by_file: bool) -> None:
    """Raise a `MapError` unless `skeleton` is the full model of the map."""
    try:
        index_map.check_full(skeleton.state_dict())
        index_map.check_transient(skeleton)
        check(skeleton, index_map.attributes)
        check_sizes(skeleton, index_map, named_by_file=named_by_file)
    except MapError as error:
        raise MapError(
            f"{where}: the skeleton {type(skeleton).__name__} is not the model that was pruned: {error}"
        ) from None
