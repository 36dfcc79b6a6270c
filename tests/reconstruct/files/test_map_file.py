"""An index map alone in a file comes back as it was, and nothing else is taken for one."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from index_map_strategies import index_maps
from torch import nn

from hfp.reconstruct import IndexMap, MapError, Pruned, TensorMap, load_index_map, save_index_map, save_pruned


@given(index_maps({"a.weight": (4, 3), "a.bias": (4,), "scale": ()}), st.data())
def test_a_map_comes_back_as_it_was(tmp_path_factory, index_map, data):
    size = data.draw(st.none() | st.integers(1, 9))
    whole = IndexMap(
        index_map.tensors,
        {} if size is None else {"a": {"out_features": size, "shape": (size, 2)}},
        {"table": TensorMap((5,), (torch.tensor([1, 4]),))},
    )
    path = tmp_path_factory.mktemp("maps") / "map.safetensors"
    assert load_index_map(save_index_map(whole, path)) == whole


def test_a_file_of_a_model_is_no_map(tmp_path):
    model = nn.Linear(2, 2)
    path = save_pruned(Pruned(model, IndexMap.identity(model)), tmp_path / "model.safetensors")
    with pytest.raises(MapError, match="holds no index map"):
        load_index_map(path)


def test_a_damaged_file_is_refused(tmp_path):
    rows = IndexMap({"weight": TensorMap((4, 2), (torch.tensor([1, 3]), None))})
    path = save_index_map(rows, tmp_path / "map.safetensors")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(MapError, match="was changed after it was written"):
        load_index_map(path)
    with pytest.raises(MapError, match="there is no file"):
        load_index_map(tmp_path / "none.safetensors")
