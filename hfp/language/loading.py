"""Read a pruned folder again, and put its weights back into the full model's."""

from __future__ import annotations

import os
import re
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hfp.errors import InputError
from hfp.language.blocks import BlockMap
from hfp.language.folder import CONFIG, ModelFolder, open_folder
from hfp.language.hub import download
from hfp.language.outline import config_from, config_of, model_class, outline_of, transformers, without_weights
from hfp.language.record import INDEX_MAP, PruneRecord
from hfp.language.stored import Layout
from hfp.language.writing import (
    SHARD_BYTES,
    NewTensors,
    check_target,
    copy_companions,
    finish,
    free_target,
    unfinished_folder,
    write_json,
    write_shards,
)
from hfp.pruning.progress import told
from hfp.reconstruct import IndexMap, MapError, Pruned, compact_model, load_index_map

_HUB = re.compile(r"[\w.-]+/[\w.-]+")


def from_pretrained(
    folder: str | os.PathLike[str], *, dtype: torch.dtype | None = None, revision: str | None = None
) -> Pruned:
    """Read a pruned model from a folder that ``hfp prune hf:...`` or `hfp.language.prune_folder` wrote.

    No code from the folder is run, and nothing is unpickled.

    Args:
        folder: the folder, or the name of a repository on the Hugging Face Hub ("organisation/name"), which is
            downloaded.
        dtype: the dtype of the weights; by default that of the files.
        revision: which version of a repository; by default the newest.

    Returns:
        The compact model in evaluation mode, its place in the full model, and what ``hfp_prune.json`` says. The place
        has `restrict` and `embed`; it is an `IndexMap`, or a `BlockMap` where whole blocks were removed.

    Raises:
        InputError: it is no such folder, or damaged, or the dtype is none of floating point.
        MapError: the index map is damaged, or is of another model.

    >>> import hfp, tempfile
    >>> from hfp.language import prune_folder
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> config = LlamaConfig(
    ...     vocab_size=100, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
    ...     num_key_value_heads=2,
    ... )
    >>> full = LlamaForCausalLM(config)
    >>> place = tempfile.mkdtemp()
    >>> full.save_pretrained(f"{place}/full")
    >>> report = prune_folder(f"{place}/full", f"{place}/small", hfp.Budget(macs=0.7))
    >>> small = hfp.from_pretrained(f"{place}/small")
    >>> state = small.index_map.embed(small.model.state_dict(), into=full.state_dict())
    >>> all(state[name].equal(tensor) for name, tensor in full.state_dict().items())
    True
    """
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise InputError(f"dtype is a floating-point type of torch, such as torch.bfloat16, not {dtype!r}")
    found, record = opened(folder, revision)
    index_map = load_index_map(found.path / INDEX_MAP)
    model = compact_outline(found, record, index_map)
    _fill(model, found, dtype)
    _with_generation(model, found.path)
    place = index_map if record.blocks is None else BlockMap(record.blocks, index_map)
    return Pruned(model.eval(), place, record.as_dict())  # type: ignore[arg-type]


def restore_folder(
    folder: str | os.PathLike[str],
    parent: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    any_parent: bool = False,
    shard_bytes: int = SHARD_BYTES,
    replace: bool = False,
    progress: Any = None,
) -> Path:
    """Put the weights of a pruned folder back into the full model, tensor by tensor, and write that as a folder.

    Args:
        folder: the pruned folder; its weights may have been trained since.
        parent: the folder of the full model. What was removed, whole blocks too, comes from there.
        out: the folder to write.
        any_parent: whether the parent may have other weights than the model that was pruned.
        shard_bytes: the most bytes of a shard.
        replace: whether to replace `out` where it is a folder of a pruned model.
        progress: True shows what is being done; a function is called with it.

    Returns:
        The folder. Where another program has written `out` meanwhile, that stays, and the new folder has a number
        behind its name, which a warning says.

    Raises:
        InputError: a folder can't be read or written, or the parent is another model.
        MapError: the index map is damaged.
    """
    target = Path(out)
    check_target(target, replace, [folder, parent])
    found, record = opened(folder, None)
    full = open_folder(parent)
    if full.fingerprint() != record.fingerprint and not any_parent:
        raise InputError(
            f"{parent} does not hold the weights that {folder} was pruned from; give that folder, or say that another "
            "one will do (any_parent=True)"
        )
    index_map = load_index_map(found.path / INDEX_MAP)
    tensors = _restored(found, record, full, index_map)
    with told(progress) as tell, unfinished_folder(target, full.bytes) as unfinished:
        write_shards(unfinished, tensors, shard_bytes, tell)
        write_json(unfinished / "config.json", full.config)
        copy_companions(full, unfinished)
        name = free_target(target, replace)
        finish(unfinished, name, target, replace)
    return name


def opened(folder: str | os.PathLike[str], revision: str | None) -> tuple[ModelFolder, PruneRecord]:
    """A pruned folder and its record; a repository of the Hub is downloaded.

    Raises:
        InputError: it is no folder that hfp wrote.
    """
    path = Path(folder)
    if not path.is_dir() and isinstance(folder, str) and _HUB.fullmatch(folder):
        path = download(folder, revision)
    elif revision is not None:
        raise InputError(f"a revision is of a repository on the Hub; {folder} is a folder here")
    found = open_folder(path)
    return found, PruneRecord.read(path)


def compact_outline(found: ModelFolder, record: PruneRecord, index_map: IndexMap) -> Any:
    """The model of a pruned folder without weights.

    Raises:
        MapError: the index map is of another model.
    """
    kind = model_class(found.config, str(found.path))
    if record.plain:
        model = without_weights(config_of(found), kind)
        shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        if shapes != {name: tensor.compact_shape for name, tensor in index_map.tensors.items()}:
            raise MapError(f"{found.path}: {INDEX_MAP} is of another model than {CONFIG}; copy the folder anew")
        return model
    full = config_from({**record.parent, **record.changed}, str(found.path))
    return compact_model(without_weights(full, kind), index_map)


def _restored(found: ModelFolder, record: PruneRecord, full: ModelFolder, index_map: IndexMap) -> list[NewTensors]:
    """Every tensor of the full model, with the entries of the pruned one in their places."""
    parent = outline_of(full)
    small = Layout(compact_outline(found, record, index_map)).weights(found)
    names = {name if record.blocks is None else record.blocks.full_name(name): name for name in small.like}
    layout = Layout(parent.model)
    for other, name in names.items():
        if other not in parent.weights.like or index_map.tensors[name].shape != parent.weights.like[other].shape:
            raise InputError(f"{full.path} is not the full model of {found.path}: it has no {other} of that shape")

    def made(unit: tuple[str, ...]) -> dict[str, Tensor]:
        whole = {other: parent.weights.read(other) for other in unit}
        return layout.stored(
            {
                # a copy lets go of the shard that the tensor is mapped from
                other: index_map.tensors[names[other]].embed(small.read(names[other]), value)
                if other in names
                else value.clone()
                for other, value in whole.items()
            }
        )

    return [
        NewTensors(sum(parent.weights.like[name].nbytes for name in unit), partial(made, unit))
        for unit in parent.weights.units
    ]


def _fill(model: Any, found: ModelFolder, dtype: torch.dtype | None) -> None:
    """Give a model the stored weights, without a second copy of them."""
    own = model.state_dict(keep_vars=True)
    weights = Layout(model).weights(found)
    first: dict[int, Tensor] = {}
    for unit in weights.units:
        for name, value in weights.load(unit[0]).items():
            first[id(own[name])] = value.to(dtype) if dtype is not None and value.is_floating_point() else value
    model.load_state_dict({name: first[id(tensor)] for name, tensor in own.items()}, assign=True)
    model.tie_weights()


def _with_generation(model: Any, path: Path) -> None:
    """Settings of generation that stand beside the weights."""
    if (path / "generation_config.json").is_file() and hasattr(model, "generation_config"):
        model.generation_config = transformers().GenerationConfig.from_pretrained(path)
