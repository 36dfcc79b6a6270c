"""A message as header and body, and as Flower's records. Torch is not imported, since a ClientApp only passes it on."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from numpy.lib import format as npy

from hfp.errors import InputError

HEADER, BODY = "header", "body"
NUMPY = "numpy.ndarray"


@dataclass(frozen=True)
class Letter:
    """A message.

    Args:
        header: a JSON document.
        body: the packed tensors.
    """

    header: str
    body: bytes = b""


def to_records(letter: Letter) -> RecordDict:
    """Turn a letter into one text and one array of bytes, because Flower's cost is per array."""
    records = RecordDict({HEADER: ConfigRecord({HEADER: letter.header})})
    if letter.body:
        records[BODY] = ArrayRecord({BODY: Array(np.frombuffer(letter.body, dtype=np.uint8))})
    return records


def from_records(records: RecordDict) -> Letter:
    """Read the letter that `to_records` was given.

    Raises:
        InputError: the header is missing, or the body is no row of bytes.
    """
    texts = records.config_records.get(HEADER)
    header = None if texts is None else texts.get(HEADER)
    if not isinstance(header, str):
        raise InputError("the message has no header")
    arrays = records.array_records.get(BODY)
    if arrays is None:
        return Letter(header)
    array = arrays.get(BODY)
    if array is None or array.stype != NUMPY:
        raise InputError("the body of a message must be one array of numpy's format")
    return Letter(header, _bytes_of(array.data))


def _bytes_of(data: bytes) -> bytes:
    """Read the bytes in a file of numpy's format; its header is checked before anything is allocated."""
    buffer = BytesIO(data)
    try:
        version = npy.read_magic(buffer)
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, _, dtype = read(buffer)
    except Exception as error:  # numpy evaluates a literal of the header, which fails in ways of its own
        raise InputError(f"the body of the message can't be read: {str(error)[:200]}") from error
    rest = data[buffer.tell() :]
    if dtype != np.uint8 or shape != (len(rest),):
        raise InputError(f"the body must be a row of {len(rest)} bytes; its header says {dtype} {shape}")
    return rest
