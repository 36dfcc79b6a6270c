"""What crosses from one process to another, as header and body. Torch is not imported, since some only pass it on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Letter:
    """A message between server and client.

    Args:
        header: a JSON document.
        body: the packed tensors.
    """

    header: str
    body: bytes = b""
