"""Random maps, shapes and states for property tests."""

from __future__ import annotations

import itertools

import torch
from hypothesis import strategies as st
from torch import Tensor

from hfp.reconstruct import IndexMap, TensorMap

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.bool)


@st.composite
def tensor_maps(draw: st.DrawFn, shape: tuple[int, ...] | None = None) -> TensorMap:
    if shape is None:
        shape = tuple(draw(st.lists(st.integers(1, 6), max_size=4)))
    kept = []
    for size in shape:
        chosen = draw(st.none() | st.sets(st.integers(0, size - 1), min_size=1))
        kept.append(None if chosen is None else torch.tensor(sorted(chosen)))
    return TensorMap(shape, tuple(kept))


@st.composite
def tensors(draw: st.DrawFn, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    """Random values, in one of several memory layouts."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    values = torch.randn(shape, generator=generator, dtype=torch.float64) * 4
    values = values > 0 if dtype == torch.bool else values.to(dtype)
    layout = draw(st.sampled_from(("contiguous", "transposed")))
    if layout == "transposed" and len(shape) > 1:
        return values.transpose(0, -1).contiguous().transpose(0, -1)
    return values


@st.composite
def index_maps(draw: st.DrawFn, shapes: dict[str, tuple[int, ...]]) -> IndexMap:
    return IndexMap({name: draw(tensor_maps(shape)) for name, shape in shapes.items()})


def mask(tensor_map: TensorMap) -> Tensor:
    """The definition of what is kept: every index of the entry is kept in its dimension."""
    found = torch.zeros(tensor_map.shape, dtype=torch.bool)
    for place in itertools.product(*map(range, tensor_map.shape)):
        inside = (kept is None or index in kept for index, kept in zip(place, tensor_map.kept, strict=True))
        found[place] = all(inside)
    return found


def assert_same_bits(found: Tensor, expected: Tensor) -> None:
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    assert (
        found.contiguous().view(-1).view(torch.uint8).tolist()
        == expected.contiguous().view(-1).view(torch.uint8).tolist()
    )
