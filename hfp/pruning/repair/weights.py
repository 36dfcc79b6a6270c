"""Know a model's weights by the memory that they lie in, and say which parts of them pruning left."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from hfp.reconstruct import IndexMap, TensorMap

COMPUTED = "parametrizations"

WeightPart = tuple[str, int, tuple[int, ...], tuple[int, ...]]
"""A part of a weight: the weight's name, and the part's offset, shape and strides."""


def parametrized(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the layers whose `weight` is computed by a parametrization, such as weight norm, with their names."""
    for name, module in model.named_modules():
        if parametrize.is_parametrized(module, "weight"):
            yield name, module


class Weights:
    """The parameters of a model, and the weights that parametrizations compute.

    Make and use it inside `paired.computed_once`, so that a computed weight stays where it is.
    """

    def __init__(self, model: nn.Module) -> None:
        self.tensors: dict[str, Tensor] = dict(model.named_parameters())
        self.modules: dict[str, nn.Module] = {}
        for name, module in parametrized(model):
            weight = f"{name}.weight".lstrip(".")
            assert isinstance(module.weight, Tensor)
            self.tensors[weight], self.modules[weight] = module.weight, module
        self._spans: dict[int, list[tuple[int, int, str]]] = {}
        for name, tensor in self.tensors.items():
            start = int(tensor.storage_offset())
            span = (start, start + tensor.numel(), name)
            self._spans.setdefault(memory(tensor), []).append(span)

    def name(self, tensor: Any) -> str | None:
        """Return the weight that a tensor is, or is a part of; None where it is none."""
        if not isinstance(tensor, Tensor):
            return None
        start = tensor.storage_offset()
        spans = self._spans.get(memory(tensor), ())
        return next((name for first, end, name in spans if first <= start < end), None)

    def part(self, tensor: Tensor) -> WeightPart:
        """Return what distinguishes a part of a weight from its other parts."""
        return (str(self.name(tensor)), int(tensor.storage_offset()), tuple(tensor.shape), tensor.stride())

    def source(self, name: str) -> str:
        """Return the parameter with which a weight shares its shape: itself, or the one that it is computed from."""
        module = self.modules.get(name)
        if module is None:
            return name
        shape, path = self.tensors[name].shape, name.rpartition("weight")[0]
        return next(
            (path + key for key, tensor in module.named_parameters() if COMPUTED in key and tensor.shape == shape), name
        )


def memory(tensor: Tensor) -> int:
    """Return a number for the memory that a tensor and its views share, while one of them is alive."""
    return tensor.untyped_storage()._cdata if tensor.layout is torch.strided else id(tensor)


class Cut:
    """What pruning left of a part of a full weight.

    Args:
        part: the part of the full weight, a view of `whole`.
        whole: the full weight.
        kept: its place in the compact one.
    """

    def __init__(self, part: Tensor, whole: Tensor, kept: TensorMap) -> None:
        self._kept = kept
        self._same = (part.shape, part.stride()) == (whole.shape, whole.stride())
        self._part, self._whole = part, whole

    @property
    def gone(self) -> bool:
        """Whether nothing is left, as of an expert that was removed."""
        if self._same:
            return False
        varying = {dim for each in range(self._part.dim()) for dim in self._along(each)}
        first = self._coordinates(torch.zeros(1, dtype=torch.int64))
        return any(
            kept is not None and dim not in varying and not bool(torch.isin(first[dim], kept))
            for dim, kept in enumerate(self._kept.kept)
        )

    def left(self, dim: int) -> Tensor | None:
        """Return the indices of a dimension of the part that are left; None where all are."""
        if self._same:
            return self._kept.kept[dim]
        coordinates = self._along(dim)
        mask = torch.ones(self._part.shape[dim], dtype=torch.bool)
        for own, places in coordinates.items():
            kept = self._kept.kept[own]
            if kept is not None:
                mask &= torch.isin(places, kept)
        return None if bool(mask.all()) else mask.nonzero()[:, 0]

    def _along(self, dim: int) -> dict[int, Tensor]:
        """Return the coordinates in the whole that change along a dimension of the part."""
        steps = torch.arange(self._part.shape[dim]) * self._part.stride(dim)
        found = self._coordinates(steps)
        return {own: places for own, places in enumerate(found) if bool((places != places[0]).any())}

    def _coordinates(self, steps: Tensor) -> tuple[Tensor, ...]:
        offset = self._part.storage_offset() - self._whole.storage_offset()
        return torch.unravel_index(steps + offset, self._whole.shape)

    @property
    def followed(self) -> bool:
        """Whether the part's place in the whole is known."""
        return self._same or self._whole.is_contiguous()


class Cuts:
    """What pruning left of the parts of a full model's weights."""

    def __init__(self, full: Weights, index_map: IndexMap) -> None:
        self._full, self._maps = full, index_map.tensors
        self._known: dict[WeightPart, Cut | None] = {}

    def unknown(self, name: str) -> bool:
        """Whether a weight may have lost something, but it can't be told what."""
        kept = self._maps.get(self._full.source(name))
        return kept is None or not kept.is_identity

    def of(self, part: Tensor) -> Cut | None:
        """Return what is left of a part; None where that isn't known."""
        key = self._full.part(part)
        if key not in self._known:
            kept, whole = self._maps.get(self._full.source(key[0])), self._full.tensors[key[0]]
            cut = None if kept is None else Cut(part, whole, kept)
            self._known[key] = cut if cut is not None and cut.followed else None
        return self._known[key]
