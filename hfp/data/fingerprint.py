"""Tell two data sets apart, wherever they lie."""

from __future__ import annotations

import hashlib
import json

import torch
from torch import Tensor

from hfp.data.dataset import CHUNK, Dataset


def fingerprint(dataset: Dataset) -> str:
    """Hash all that a run sees of its data.

    This is the class names, shapes, images, labels, their clients and how images are normalised. The name,
    the notes and the place of the files do not count. The images are read once, a part at a time.

    >>> from hfp.data import load_dataset
    >>> digits, fewer = load_dataset("digits"), load_dataset("digits", limit=100)
    >>> fingerprint(digits) == fingerprint(load_dataset("digits")), fingerprint(digits) == fingerprint(fewer)
    (True, False)
    """
    owners = () if dataset.owners is None else (dataset.owners,)
    tensors = (*_parts(dataset), dataset.mean, dataset.std, *owners)
    kinds = [[str(tensor.dtype), list(tensor.shape)] for tensor in tensors]
    digest = hashlib.blake2b(json.dumps([dataset.classes, kinds]).encode(), digest_size=16)
    for tensor in tensors:
        for chunk in tensor.split(CHUNK):
            digest.update(chunk.contiguous().cpu().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _parts(dataset: Dataset) -> tuple[Tensor, ...]:
    return dataset.train.images, dataset.train.labels, dataset.test.images, dataset.test.labels
