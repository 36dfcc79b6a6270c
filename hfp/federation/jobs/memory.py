"""Puts tensors into one file in memory, which every process that has the file maps without a copy."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from typing import IO, Any

import torch
from torch import Tensor

from hfp.data.mapping import mapped as memory_of
from hfp.federation.wire import DTYPES

ALIGNMENT = 64
"""Tensors begin at multiples of so many bytes, as those that PyTorch allocates."""

Places = dict[str, dict[str, Any]]
"""Each tensor's offset in bytes, dtype and shape, by name: plain values that can be sent."""


def written(tensors: Mapping[str, Tensor]) -> tuple[IO[bytes], Places]:
    """Write tensors to a file that has no name, so that nothing is left of it when all processes have ended.

    >>> file, places = written({"labels": torch.arange(3)})
    >>> mapped(file.fileno(), places)["labels"]
    tensor([0, 1, 2])
    """
    file = _nameless()
    places: Places = {}
    for name, tensor in tensors.items():
        file.write(bytes(-file.tell() % ALIGNMENT))
        dtype = str(tensor.dtype).removeprefix("torch.")
        places[name] = {"offset": file.tell(), "dtype": dtype, "shape": list(tensor.shape)}
        file.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    file.flush()
    return file, places


def mapped(file: int, places: Places) -> dict[str, Tensor]:
    """Map the tensors of a file, given by its descriptor. Writing to them changes no other process's."""
    buffer, tensors = memory_of(file), {}
    for name, place in places.items():
        dtype, shape = DTYPES[place["dtype"]], torch.Size(place["shape"])
        values = torch.empty(0, dtype=dtype)
        if shape.numel():
            values = torch.frombuffer(buffer, dtype=dtype, count=shape.numel(), offset=place["offset"])
        tensors[name] = values.reshape(shape)
    return tensors


def _nameless() -> IO[bytes]:
    """Make a file in memory, or where the system has no such files, one in the folder for temporary files."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("hfp"), "w+b")
    return tempfile.TemporaryFile()  # noqa: SIM115, it stays open
