"""Write a folder of transformers: shard by shard, whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from hfp.atomic import flush, free_name
from hfp.errors import InputError
from hfp.language.folder import CONFIG, INDEX, SINGLE, ModelFolder
from hfp.language.names import RECORD

SHARD_BYTES = 2**30
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".gguf", ".onnx")
_OF_THE_PARENT = ("README.md", CONFIG, RECORD)  # and code, which is never run


@dataclass(frozen=True)
class NewTensors:
    """Tensors to write into one shard: how many bytes they take, and how to make them by name."""

    bytes: int
    make: Callable[[], Mapping[str, Tensor]]


def check_target(out: Path, replace: bool, sources: Sequence[str | os.PathLike[str]]) -> None:
    """Make sure that a folder can be written.

    Raises:
        InputError: it exists, it is one of those that are read, or there is no folder to write it into.
    """
    if out.resolve() in [Path(source).resolve() for source in sources]:
        raise InputError(f"{out} is a folder that is read here; give another one to write to")
    if not out.absolute().parent.is_dir():
        raise InputError(f"there is no folder {out.absolute().parent} to write {out.name} into")
    if not out.exists():
        return
    if not replace:
        raise InputError(f"{out} exists; give another name, or ask to replace it (--force)")
    if not (out / RECORD).is_file():
        raise InputError(f"{out} exists and is not a pruned model's folder, so it is not replaced; give another name")


@contextmanager
def unfinished_folder(out: Path, needed: int) -> Iterator[Path]:
    """A folder to write to, beside `out`. It is removed unless `finish` gave it a name when the block ends.

    Args:
        out: the name that it will have.
        needed: how many bytes it will hold.

    Raises:
        InputError: the disk has less room than that, or writing failed.
    """
    home = out.absolute().parent
    free = shutil.disk_usage(home).free
    if free < needed:
        raise InputError(f"{out} needs {needed:,} bytes, and {home} has {free:,} left; give a folder on another disk")
    unfinished = home / f".{out.name}.{uuid.uuid4().hex}.tmp"
    try:
        unfinished.mkdir()
        yield unfinished
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{out} can't be written: {reason}; nothing was kept") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def free_target(out: Path, replace: bool) -> Path:
    """Return the name for a finished folder: another one where something that may not be replaced has come to be."""
    return out if replace and (out / RECORD).is_file() else free_name(out)


def finish(unfinished: Path, name: Path, out: Path, replace: bool) -> None:
    """Give the finished folder its name, and warn where that is not `out`, the one that was asked for.

    A folder that was there goes afterwards, where it may be replaced.
    """
    for file in unfinished.iterdir():
        flush(file)  # before a folder that it replaces is gone
    old = unfinished.with_suffix(".old")
    if replace and name.exists():
        name.rename(old)
    try:
        unfinished.rename(name)
    except BaseException:  # also where a person interrupts it
        if old.exists() and not name.exists():
            old.rename(name)
        raise
    shutil.rmtree(old, ignore_errors=True)
    if name != out:
        told = f"{out} was written by another program meanwhile, and stays; the new folder is {name}"
        warnings.warn(told, stacklevel=3)


def write_shards(folder: Path, tensors: Sequence[NewTensors], shard_bytes: int, tell: Callable[[str], None]) -> None:
    """Write tensors as shards, and their index.

    A shard has at most `shard_bytes`, but for one that holds only tensors that must be together.
    """
    parts = list(_split(tensors, shard_bytes))
    places: dict[str, str] = {}
    for number, part in enumerate(parts, 1):
        shard = SINGLE if len(parts) == 1 else f"model-{number:05}-of-{len(parts):05}.safetensors"
        tell(f"writing shard {number} of {len(parts)}")
        made = {name: tensor.contiguous() for each in part for name, tensor in each.make().items()}
        save_file(made, folder / shard, {"format": "pt"})
        places |= dict.fromkeys(made, shard)
        del made
    if len(parts) > 1:
        total = sum(each.bytes for each in tensors)
        write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": places})


def _split(tensors: Sequence[NewTensors], shard_bytes: int) -> Iterator[Sequence[NewTensors]]:
    part: list[NewTensors] = []
    size = 0
    for each in tensors:
        if part and size + each.bytes > shard_bytes:
            yield part
            part, size = [], 0
        part.append(each)
        size += each.bytes
    yield part


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Write an object as JSON that a person can read."""
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def copy_companions(source: ModelFolder, target: Path) -> None:
    """Copy what stands beside the weights: the tokenizer, settings of generation, the licence."""
    for file in sorted(source.path.iterdir()):
        weights = file.name.endswith((*_WEIGHTS, ".index.json"))
        if file.is_file() and not weights and file.suffix != ".py" and file.name not in _OF_THE_PARENT:
            shutil.copyfile(file, target / file.name)
