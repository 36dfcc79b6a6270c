"""Writes letters as Flower's records and reads them. A ClientApp only passes letters on, so torch is not imported."""

from __future__ import annotations

import re

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from hfp.errors import InputError
from hfp.federation.letter import Letter

HEADER, BODY = "header", "body"
NUMPY = "numpy.ndarray"
MAGIC = b"\x93NUMPY"
ROW = re.compile(
    re.escape(MAGIC)
    + rb"\x01\x00..\{'descr': '\|u1', 'fortran_order': False, 'shape': \((?P<length>\d{1,18}),\), \} *\n",
    re.DOTALL,
)
"""How numpy's file of a row of bytes begins."""


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
    """Return what an array file of bytes holds; its header is compared, and not evaluated as numpy does."""
    if not data.startswith(MAGIC):
        raise InputError(f"the body of the message can't be read: it begins with {data[:8]!r}")
    found = ROW.match(data)
    length = int(found["length"]) if found else -1
    if found is None or len(data) - found.end() != length:
        rest, header = len(data) - (found.end() if found else 0), data[len(MAGIC) + 4 : 100].split(b"}")[0]
        raise InputError(f"the body must be a row of {rest} bytes; its header says {header!r}")
    return data[found.end() :]
