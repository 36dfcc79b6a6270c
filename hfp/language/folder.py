"""A folder of transformers: its configuration, and where each tensor is in its safetensors shards."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hfp.errors import InputError, listed, printable

CONFIG, SINGLE = "config.json", "model.safetensors"
INDEX = f"{SINGLE}.index.json"
_PICKLES = ("pytorch_model*.bin", "*.pt", "*.pth", "*.ckpt")
_PIECES, _PIECE = 16, 4096  # a fingerprint reads so many pieces of so many bytes of every shard
_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor is stored: the shard's file name, the dtype as safetensors writes it, and the shape."""

    shard: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """How many bytes the tensor takes in its shard."""
        return self.empty().nbytes

    def empty(self) -> Tensor:
        """A tensor of this shape and dtype without values, on the meta device."""
        return torch.empty(self.shape, dtype=_DTYPES[self.dtype], device="meta")


@dataclass(frozen=True)
class ModelFolder:
    """A folder of transformers whose weights were looked at, but not read.

    Args:
        path: the folder.
        config: what config.json holds.
        tensors: every stored tensor by its name, shard by shard.
    """

    path: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, StoredTensor]

    @property
    def architecture(self) -> str:
        """The name of the model's class in transformers."""
        return str(self.config["architectures"][0])

    @property
    def shards(self) -> tuple[str, ...]:
        """The file names of the shards, in order."""
        return tuple(dict.fromkeys(tensor.shard for tensor in self.tensors.values()))

    @property
    def bytes(self) -> int:
        """How many bytes all weights take."""
        return sum(tensor.bytes for tensor in self.tensors.values())

    def read(self, name: str) -> Tensor:
        """Read one tensor.

        Raises:
            InputError: the shard is gone or damaged, or there is no memory to map it.
        """
        path = self.path / self.tensors[name].shard
        try:
            with safe_open(path, framework="pt") as file:
                return file.get_tensor(name)
        except (SafetensorError, OSError, RuntimeError) as error:
            raise InputError(f"{path}: {name} can't be read: {error}") from error

    def fingerprint(self) -> str:
        """Tell these weights from others: a hash of the shards' headers and of pieces of them.

        Of every shard, 16 pieces of 4 KiB at equal distances are read, so that this takes no time for any size.
        """
        digest = hashlib.sha256()
        for shard in self.shards:
            size = (self.path / shard).stat().st_size
            with open(self.path / shard, "rb") as file:
                for piece in range(_PIECES):
                    file.seek(size * piece // _PIECES)
                    digest.update(file.read(_PIECE))
            names = {name: (stored.dtype, stored.shape) for name, stored in self.tensors.items()}
            digest.update(json.dumps([size, names], sort_keys=True).encode())
        return digest.hexdigest()


def open_folder(path: str | os.PathLike[str]) -> ModelFolder:
    """Look into a folder of transformers; only the headers of its shards are read.

    Raises:
        InputError: there is no such folder, it holds no model, a shard is missing or damaged, or the weights are
            quantised or pickled.
    """
    path = Path(path)
    if not path.is_dir():
        raise InputError(f"there is no folder {path}; give a folder that save_pretrained of transformers wrote")
    config = _config(path)
    tensors: dict[str, StoredTensor] = {}
    for shard in _shards(path):
        tensors |= _header(path, shard)
    return ModelFolder(path, config, tensors)


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Raises:
        InputError: it can't be read, or holds something else.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} can't be read: {error}") from error
    if not isinstance(found, dict):
        raise InputError(f"{path} is damaged: expected an object; found {type(found).__name__}")
    return found


def _config(path: Path) -> dict[str, Any]:
    if not (path / CONFIG).is_file():
        raise InputError(f"{path} holds no {CONFIG}; give a folder that save_pretrained of transformers wrote")
    config = read_object(path / CONFIG)
    names = config.get("architectures")
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        raise InputError(f"{path / CONFIG} names no class under 'architectures'; save the model with save_pretrained")
    if config.get("quantization_config"):
        raise InputError(f"{path} holds quantised weights; prune the folder that they were made from")
    return config


def _shards(path: Path) -> list[str]:
    if (path / SINGLE).is_file():
        return [SINGLE]
    if not (path / INDEX).is_file():
        raise InputError(_without_shards(path))
    found = read_object(path / INDEX).get("weight_map")
    if not isinstance(found, dict) or not found or not all(isinstance(name, str) for name in found.values()):
        raise InputError(f"{path / INDEX} is damaged: expected a file name for every tensor under 'weight_map'")
    names = sorted(set(found.values()))
    outside = [name for name in names if Path(name).name != name]
    if outside:
        raise InputError(f"{path / INDEX} names a file outside the folder: {printable(outside[0])}")
    missing = [name for name in names if not (path / name).is_file()]
    if missing:
        raise InputError(
            f"{len(missing)} of {len(names)} shards are missing in {path}: {listed(list(map(printable, missing)))}; "
            "download them again"
        )
    return names


def _without_shards(path: Path) -> str:
    """Why there are no weights."""
    pickled = next((file.name for pattern in _PICKLES for file in sorted(path.glob(pattern))), None)
    if pickled is None:
        return f"{path} holds no weights: expected {SINGLE}, or {INDEX} and the shards that it names"
    return (
        f"{path} holds its weights in {pickled}, which is a pickle and may run code; only safetensors is read here. "
        "Where you trust the file, transformers converts it: AutoModel.from_pretrained(FOLDER).save_pretrained(NEW), "
        "with the Auto class of your model"
    )


def _header(path: Path, shard: str) -> dict[str, StoredTensor]:
    found = {}
    try:
        with safe_open(path / shard, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                part = file.get_slice(name)
                found[name] = StoredTensor(shard, part.get_dtype(), tuple(part.get_shape()))
                if found[name].dtype not in _DTYPES:
                    raise InputError(
                        f"{path / shard}: {printable(name)} has numbers of the kind {found[name].dtype}, which torch "
                        "can't prune; give the folder that this one was made from"
                    )
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path / shard} is not a whole safetensors file: {error}; download it again") from error
    return found
