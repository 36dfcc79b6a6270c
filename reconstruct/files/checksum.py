"""A checksum over everything in a safetensors file: the description, and names, dtypes, shapes and bytes of tensors."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Any, BinaryIO

from hfp.reconstruct.errors import MapError

CHECKSUM = "hfp_checksum"
_LENGTH = struct.Struct("<Q")
_PIECE = 2**20


def with_checksum(content: bytes) -> bytes:
    """The bytes of a safetensors file with the checksum among its metadata, whose order is fixed.

    safetensors itself writes metadata in an order that differs from process to process.
    """
    (length,) = _LENGTH.unpack_from(content)
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    digest = _begun(header)
    digest.update(data)
    header["__metadata__"] = {**header["__metadata__"], CHECKSUM: digest.hexdigest()}
    text = json.dumps({"__metadata__": header.pop("__metadata__"), **header}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return _LENGTH.pack(len(text)) + text + data


def check_checksum(path: Path) -> None:
    """Refuse a file whose content is not what its checksum says; one without a checksum passes.

    The file must be one that safetensors has opened. It is read a piece at a time.

    Raises:
        MapError: the file was changed after it was written.
    """
    with open(path, "rb") as file:
        (length,) = _LENGTH.unpack(file.read(8))
        header = json.loads(file.read(length))
        expected = (header.get("__metadata__") or {}).pop(CHECKSUM, None)
        if expected is not None and _digest(header, file) != expected:
            raise MapError(f"{path} was changed after it was written: its content does not fit its checksum")


def _digest(header: dict[str, Any], file: BinaryIO) -> str:
    digest = _begun(header)
    while piece := file.read(_PIECE):
        digest.update(piece)
    return digest.hexdigest()


def _begun(header: dict[str, Any]) -> hashlib._Hash:
    return hashlib.sha256(json.dumps(header, sort_keys=True, separators=(",", ":")).encode())
