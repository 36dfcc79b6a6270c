"""Tensors and text in one file of safetensors: the same content has the same bytes, and damage is noticed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from hfp.errors import InputError

_METADATA, _CHECKSUM = "__metadata__", "sha256"
_SIZE = 8
"""Bytes that say how long the header is; the header is padded to a multiple of it."""


def to_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """Write tensors, copied to the processor where need be, and metadata, with a checksum over both.

    safetensors writes its metadata in an order that differs from process to process; here it is sorted.
    """
    plain = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    header, content = _split(plain)
    entries = {name: metadata[name] for name in sorted(metadata)}
    entries[_CHECKSUM] = _checksum(entries, header, content)
    text = json.dumps({_METADATA: entries, **header}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _SIZE)
    return b"".join([len(text).to_bytes(_SIZE, "little"), text, content])


def read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Read the metadata and the tensors of a file that `to_bytes` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        InputError: it can't be read, or is damaged.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise InputError(f"{path} can't be read: {error.strerror}") from error
    try:
        tensors = load(content)
        header, values = _split(content)
        metadata = dict(header.pop(_METADATA, {}))
        checksum = metadata.pop(_CHECKSUM, None)
    except (SafetensorError, ValueError, TypeError, RecursionError) as error:
        raise InputError(f"{path} is damaged: {error}") from error
    if checksum is not None and checksum != _checksum(metadata, header, values):
        raise InputError(f"{path} is damaged: its checksum is not that of its content")
    return metadata, tensors


def _split(content: bytes) -> tuple[dict[str, Any], memoryview]:
    """Return the header and the tensors' bytes."""
    end = _SIZE + int.from_bytes(content[:_SIZE], "little")
    return json.loads(content[_SIZE:end]), memoryview(content)[end:]


def _checksum(metadata: Mapping[str, str], header: Mapping[str, Any], content: memoryview) -> str:
    digest = hashlib.sha256(json.dumps([sorted(metadata.items()), header]).encode())
    digest.update(content)
    return digest.hexdigest()
