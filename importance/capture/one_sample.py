"""Take one sample out of a batch, and see what each layer computes for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hfp.importance.capture.batches import ForwardPass, like_tuple


def one_sample(batch: Any, place: int, size: int, depth: int = 0) -> Any:
    """Return a batch with the sample at one place alone.

    Tensors with one row per sample are cut. So are lists of tensors among a model's arguments, and lists of
    dictionaries, with one item per sample. Everything else belongs to all samples.

    Args:
        batch: what `ForwardPass.batches` yields, in which lists are tuples.
        place: the sample's place, from 0.
        size: how many samples the batch holds.
        depth: how deep this lies in the batch. A model's arguments lie at 2.
    """
    if isinstance(batch, Tensor):
        return batch[place : place + 1] if batch.dim() > 0 and len(batch) == size else batch
    if isinstance(batch, Mapping):
        return {key: one_sample(value, place, size, depth + 1) for key, value in batch.items()}
    if not isinstance(batch, tuple):
        return batch
    if len(batch) == size and is_list_of_samples(batch, depth):
        return batch[place : place + 1]
    return like_tuple(batch, (one_sample(value, place, size, depth + 1) for value in batch))


def is_list_of_samples(value: Any, depth: int) -> bool:
    """Return whether a part of a batch that lies so deep is a list with one item per sample."""
    kinds = Mapping if depth < 2 else Mapping | Tensor
    return isinstance(value, tuple) and len(value) > 0 and all(isinstance(item, kinds) for item in value)


@torch.no_grad()
def rows_of_one(
    model: nn.Module, layers: Mapping[str, nn.Module], run: ForwardPass, batch: Any, size: int
) -> dict[str, set[int]]:
    """Return how many rows the output of each layer has for a batch's first sample alone, by the layer's name.

    Layers that do not run are left out. There are none at all where the model does not run on one sample.
    """
    found: dict[str, set[int]] = {}

    def watch(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            found.setdefault(name, set()).add(len(output) if isinstance(output, Tensor) and output.dim() else 0)

        return hook

    handles = [layer.register_forward_hook(watch(name)) for name, layer in layers.items()]
    try:
        run.output(model, one_sample(batch, 0, size))
    except Exception:
        return {}
    finally:
        for handle in handles:
            handle.remove()
    return found


def follows_samples(rows: int, size: int, rows_of_one: set[int] | None) -> bool:
    """Return whether this many rows are those of `size` samples, all alike, one sample after the other.

    Args:
        rows: how many rows a batch has.
        size: how many samples it has.
        rows_of_one: how many rows one of the samples has alone; None where that is not known.
    """
    return rows % size == 0 and (rows_of_one is None or rows // size in rows_of_one)
