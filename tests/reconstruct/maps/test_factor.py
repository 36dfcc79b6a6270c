"""What surgery leaves of index tensors becomes a map, or is refused."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from index_map_strategies import DTYPES, tensor_maps

from hfp.reconstruct import MapError
from hfp.reconstruct.maps.factor import factor, flat_indices


@given(st.data(), st.sampled_from(DTYPES))
def test_every_product_of_index_sets_is_found(data, dtype):
    tensor_map = data.draw(tensor_maps())
    shadow = flat_indices(torch.empty(tensor_map.shape, dtype=dtype))
    assert factor(tensor_map.restrict(shadow), tensor_map.shape, "w") == tensor_map


def test_indices_stay_exact_beyond_float32():
    shape = (2, 2**24 + 1)
    shadow = flat_indices(torch.empty(shape, device="meta"))
    assert shadow.dtype == torch.float64
    tensor_map = factor(shadow[1:, -2:], shape, "w")
    assert [kept.tolist() for kept in tensor_map.kept] == [[1], [2**24 - 1, 2**24]]


def other_block(shadow):
    """Rows 0 and 1, but of different columns."""
    return torch.stack([shadow[0, :2], shadow[1, 1:3]])


@pytest.mark.parametrize(
    ("surgery", "message"),
    [
        (other_block, "not one set of kept indices per dimension"),
        (lambda shadow: shadow.flip(0), "w: surgery reordered or repeated channels"),
        (lambda shadow: shadow[[0, 0]], "w: surgery reordered or repeated channels"),
        (lambda shadow: shadow.t(), "not one set|reordered or repeated"),
        (lambda shadow: shadow.flatten(), r"turned shape \[3, 4\] into \[12\]"),
        (lambda shadow: shadow[:0], r"turned shape \[3, 4\] into \[0, 4\]"),
        (lambda shadow: shadow * 0, "reordered or repeated|not one set"),
        (lambda shadow: torch.where(shadow == 5, 6.0, shadow), "not one set"),
        (lambda shadow: shadow.half() + 0.5, "not one set"),
    ],
)
def test_what_is_no_removal_is_refused(surgery, message):
    with pytest.raises(MapError, match=message):
        factor(surgery(flat_indices(torch.empty(3, 4))), (3, 4), "w")
