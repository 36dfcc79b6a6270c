"""Index maps: restrict, embed, add, compose, compare, print."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from index_map_strategies import DTYPES, assert_same_bits, index_maps, mask, tensor_maps, tensors
from torch import nn

from hfp.reconstruct import IndexMap, MapError, TensorMap

SHAPES = {"conv.weight": (4, 3, 2, 2), "norm.running_mean": (4,), "norm.num_batches_tracked": (), "fc.weight": (5, 4)}


def kept(*indices):
    return torch.tensor(indices)


@given(st.data(), st.sampled_from(DTYPES))
def test_embed_then_restrict_gives_the_submodel_back(data, dtype):
    tensor_map = data.draw(tensor_maps())
    sub = data.draw(tensors(tensor_map.compact_shape, dtype))
    full = data.draw(tensors(tensor_map.shape, dtype))
    assert_same_bits(tensor_map.restrict(tensor_map.embed(sub, full)), sub)


@given(st.data(), st.sampled_from(DTYPES))
def test_embed_changes_kept_entries_only(data, dtype):
    tensor_map = data.draw(tensor_maps())
    sub = data.draw(tensors(tensor_map.compact_shape, dtype))
    full = data.draw(tensors(tensor_map.shape, dtype))
    before, inside = full.clone(), mask(tensor_map)
    found = tensor_map.embed(sub, full)
    assert_same_bits(full, before)
    assert_same_bits(found[~inside], full[~inside])
    assert_same_bits(found[inside], sub.reshape(-1))


@given(st.data(), st.sampled_from(DTYPES))
def test_restrict_picks_the_kept_entries_in_order(data, dtype):
    tensor_map = data.draw(tensor_maps())
    full = data.draw(tensors(tensor_map.shape, dtype))
    sub = tensor_map.restrict(full)
    assert sub.shape == tensor_map.compact_shape
    assert_same_bits(sub.reshape(-1), full[mask(tensor_map)])
    assert sub.data_ptr() != full.data_ptr()


@given(st.data(), st.floats(-4, 4))
def test_add_equals_its_definition(data, weight):
    tensor_map = data.draw(tensor_maps())
    sub, into = data.draw(tensors(tensor_map.compact_shape)), data.draw(tensors(tensor_map.shape))
    expected = into.double()
    expected[mask(tensor_map)] += weight * sub.double().reshape(-1)
    tensor_map.add(sub, into, weight)
    torch.testing.assert_close(into.double(), expected, rtol=1e-5, atol=1e-6)


@given(st.data(), st.sampled_from([-2.0, 0.5, 3.0]))
def test_add_changes_no_bit_of_the_entries_that_are_not_kept(data, weight):
    tensor_map = data.draw(tensor_maps())
    size = math.prod(tensor_map.shape)
    values = data.draw(st.lists(st.sampled_from([0.0, -0.0, 1.0, math.inf, math.nan]), min_size=size, max_size=size))
    into = torch.tensor(values).view(tensor_map.shape)
    before, kept_entries = into.clone(), mask(tensor_map)
    tensor_map.add(data.draw(tensors(tensor_map.compact_shape)), into, weight)
    assert_same_bits(into[~kept_entries], before[~kept_entries])


@given(st.data())
def test_write_is_embed_in_place(data):
    tensor_map = data.draw(tensor_maps())
    sub, full = data.draw(tensors(tensor_map.compact_shape)), data.draw(tensors(tensor_map.shape))
    expected = tensor_map.embed(sub, full)
    tensor_map.write(sub, full)
    assert_same_bits(full, expected)


def test_add_and_embed_of_rows_longer_than_a_block():
    tensor_map = TensorMap((9, 5, 70, 700), (kept(0, 2, 3, 8), kept(1, 4), None, None))
    sub, into = torch.randn(tensor_map.compact_shape), torch.randn(tensor_map.shape)
    expected = into.clone()
    expected[mask_by_dimension(tensor_map)] += 0.5 * sub.view(-1)
    written = tensor_map.embed(sub, into)
    tensor_map.add(sub, into, 0.5)
    torch.testing.assert_close(into, expected)
    torch.testing.assert_close(tensor_map.restrict(written), sub, rtol=0, atol=0)


def mask_by_dimension(tensor_map):
    found = torch.zeros(tensor_map.shape, dtype=torch.bool)
    rows, columns = tensor_map.kept[:2]
    found[rows[:, None], columns] = True
    return found


@given(st.data())
def test_mask_is_its_definition(data):
    tensor_map = data.draw(tensor_maps())
    assert torch.equal(tensor_map.mask(), mask(tensor_map))
    assert int(tensor_map.mask().sum()) == math.prod(tensor_map.compact_shape)


@given(st.data())
def test_then_is_one_restriction_after_the_other(data):
    first = data.draw(tensor_maps())
    later = data.draw(tensor_maps(first.compact_shape))
    full = data.draw(tensors(first.shape))
    assert_same_bits(first.then(later).restrict(full), later.restrict(first.restrict(full)))
    assert first.then(TensorMap.identity(first.compact_shape)) == first
    assert TensorMap.identity(first.shape).then(first) == first


@given(st.data())
def test_equality_is_of_what_is_kept(data):
    first = data.draw(tensor_maps())
    spelled_out = TensorMap(
        first.shape,
        tuple(torch.arange(n) if k is None else k.clone() for n, k in zip(first.shape, first.kept, strict=True)),
    )
    assert first == spelled_out
    other = data.draw(tensor_maps(first.shape))
    assert (first == other) == torch.equal(mask(first), mask(other))
    assert first != "a map"


def test_values_are_cast_to_the_tensor_they_go_into():
    tensor_map = TensorMap((3,), (kept(0, 2),))
    found = tensor_map.embed(torch.tensor([1.0, 2.0], dtype=torch.float64), torch.zeros(3, dtype=torch.float16))
    assert found.dtype == torch.float16
    assert found.tolist() == [1, 0, 2]


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        ([2, 1], "ascending"),
        ([1, 1], "ascending"),
        ([0, 4], r"in \[0, 4\)"),
        ([-1, 0], r"in \[0, 4\)"),
        ([], "no index is kept"),
        ([[0, 1]], "vector of int64"),
        ([0.5], "vector of int64"),
    ],
)
def test_indices_that_describe_no_part_are_refused(indices, message):
    wrong = torch.tensor(indices, dtype=torch.int64 if indices == [] else None)
    with pytest.raises(MapError, match=message):
        TensorMap((4,), (wrong,))


def test_one_entry_of_kept_indices_per_dimension():
    with pytest.raises(MapError, match="one entry of kept indices per dimension"):
        TensorMap((4, 2), (None,))


def test_then_refuses_a_map_of_another_shape():
    with pytest.raises(MapError, match=r"expected a map of shape \[2\], got one of shape \[4\]"):
        TensorMap((4,), (kept(0, 1),)).then(TensorMap.identity((4,)))


@given(st.data())
def test_a_state_round_trips_tensor_by_tensor(data):
    index_map = data.draw(index_maps(SHAPES))
    full = {name: data.draw(tensors(shape)) for name, shape in SHAPES.items()}
    sub = index_map.restrict(full)
    back = index_map.embed(sub, into=full)
    assert list(sub) == list(back) == list(full)
    for name in SHAPES:
        assert_same_bits(back[name], full[name].contiguous())
    assert index_map.kept_entries == sum(tensor.numel() for tensor in sub.values())
    assert index_map.full_entries == sum(tensor.numel() for tensor in full.values())
    assert {name: int(m.sum()) for name, m in index_map.masks().items()} == {n: t.numel() for n, t in sub.items()}


def test_add_over_a_state_is_in_place():
    index_map = IndexMap({"w": TensorMap((3,), (kept(1),))})
    into = {"w": torch.ones(3)}
    index_map.add({"w": torch.tensor([5.0])}, into, weight=2.0)
    assert into["w"].tolist() == [1, 11, 1]


def test_counts_are_added_a_whole_number_of_times_or_not_at_all():
    index_map = IndexMap({"w": TensorMap((3,), (kept(1),)), "count": TensorMap((), ())})
    into = {"w": torch.ones(3), "count": torch.tensor(7)}
    index_map.add({"w": torch.tensor([5.0]), "count": torch.tensor(4)}, into)
    assert into["w"].tolist() == [1, 6, 1] and int(into["count"]) == 11
    with pytest.raises(MapError, match=r"count: 0.5 times a tensor of torch.int64 can't be added"):
        index_map.add({"w": torch.tensor([5.0]), "count": torch.tensor(4)}, into, weight=0.5)
    assert into["w"].tolist() == [1, 6, 1] and int(into["count"]) == 11


def example_map():
    return IndexMap(
        {
            "a.weight": TensorMap((3, 2), (kept(0, 2), None)),
            "a.bias": TensorMap((3,), (kept(0, 2),)),
            "n": TensorMap((), ()),
        },
        {"a": {"out_features": 2}, "": {"width": 2}},
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"a.bias": None}, "missing a.bias"),
        ({"b": torch.zeros(1)}, "unexpected b"),
        ({"a.weight": torch.zeros(2, 2)}, r"a.weight: expected the full shape \[3, 2\], got \[2, 2\]"),
    ],
)
def test_states_of_other_models_are_refused(change, message):
    full = {"a.weight": torch.zeros(3, 2), "a.bias": torch.zeros(3), "n": torch.tensor(0)}
    wrong = {name: value for name, value in {**full, **change}.items() if value is not None}
    index_map = example_map()
    sub = index_map.restrict(full)
    for work in (
        lambda: index_map.restrict(wrong),
        lambda: index_map.embed(sub, into=wrong),
        lambda: index_map.add(sub, wrong),
    ):
        with pytest.raises(MapError, match=message):
            work()


def test_a_full_state_is_no_compact_one():
    full = {"a.weight": torch.zeros(3, 2), "a.bias": torch.zeros(3), "n": torch.tensor(0)}
    with pytest.raises(MapError, match=r"a.weight: expected the compact shape \[2, 2\], got \[3, 2\]"):
        example_map().embed(full, into=full)


def test_then_joins_tensors_and_attributes():
    first = example_map()
    later = IndexMap(
        {"a.weight": TensorMap((2, 2), (kept(1), None)), "a.bias": TensorMap((2,), (kept(1),)), "n": TensorMap((), ())},
        {"a": {"out_features": 1, "extra": True}},
        {"buffer": TensorMap((4,), (kept(3),))},
    )
    both = first.then(later)
    assert both.tensors["a.weight"] == TensorMap((3, 2), (kept(2), None))
    assert {name: dict(changed) for name, changed in both.attributes.items()} == {
        "": {"width": 2},
        "a": {"out_features": 1, "extra": True},
    }
    assert both.transient == later.transient
    again = both.then(IndexMap({n: TensorMap.identity(t.compact_shape) for n, t in both.tensors.items()}))
    assert again == both


def test_then_names_the_tensor_that_does_not_fit():
    later = IndexMap({name: TensorMap.identity(tensor.shape) for name, tensor in example_map().tensors.items()})
    with pytest.raises(MapError, match="a.weight: expected a map of shape"):
        example_map().then(later)
    with pytest.raises(MapError, match="different models: missing a.weight"):
        example_map().then(IndexMap({}))


def test_identity_of_a_model_keeps_everything():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    index_map = IndexMap.identity(model)
    assert list(index_map.tensors) == list(model.state_dict())
    assert index_map.kept_entries == index_map.full_entries == sum(t.numel() for t in model.state_dict().values())
    assert index_map == IndexMap.identity(model.state_dict())
    assert all(tensor.is_identity for tensor in index_map.tensors.values())


def test_identity_of_a_state_with_other_things_is_refused():
    with pytest.raises(MapError, match="something other than tensors: .'epoch'"):
        IndexMap.identity({"w": torch.zeros(1), "epoch": 3})


def test_maps_compare_by_content():
    assert example_map() == example_map()
    assert example_map() != IndexMap(example_map().tensors)
    assert example_map() != IndexMap(example_map().tensors, example_map().attributes, {"b": TensorMap.identity((2,))})


def test_maps_can_not_be_changed():
    with pytest.raises(TypeError, match="does not support item assignment"):
        example_map().tensors["b"] = TensorMap.identity(())
    with pytest.raises(TypeError, match="does not support item assignment"):
        example_map().attributes["a"]["out_features"] = 3


def test_a_map_prints_itself_readably():
    assert str(example_map()) == (
        "IndexMap: 7 of 10 entries kept (70.0%), 2 of 3 tensors cut\n"
        "  a.weight: [3, 2] -> [2, 2], dim 0: 0 2\n"
        "  a.bias: [3] -> [2], dim 0: 0 2\n"
        "  a: out_features = 2\n"
        "  (model): width = 2"
    )
    long = TensorMap((40, 2), (torch.arange(0, 40, 2), kept(1)))
    assert str(long) == "[40, 2] -> [20, 1], dim 0: 0 2 4 6 8 10 12 ... 38; dim 1: 1"
    assert str(TensorMap.identity((3, 1))) == "[3, 1] whole"


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (None, "expected a state_dict, which maps names to tensors, found a NoneType"),
        (nn.Linear(2, 3), "expected a state_dict, which maps names to tensors, found a Linear"),
        ({"weight": [1.0, 2.0], "bias": torch.zeros(3)}, r"something other than tensors: \['weight'\]"),
    ],
)
def test_what_is_no_state_is_refused(state, message):
    whole = IndexMap.identity(nn.Linear(2, 3))
    for use in (whole.restrict, lambda given: whole.embed(given, into=given)):
        with pytest.raises(MapError, match=message):
            use(state)


@pytest.mark.parametrize("weight", [math.nan, math.inf])
def test_integers_can_not_be_added_without_end(weight):
    state = {"count": torch.zeros((), dtype=torch.int64)}
    with pytest.raises(MapError, match=f"count: {weight} times a tensor"):
        IndexMap.identity(state).add(state, state, weight)


def test_rows_without_entries_go_where_they_come_from():
    rows, full = TensorMap((4, 0), (kept(0, 2), None)), torch.zeros(4, 0)
    assert rows.embed(rows.restrict(full), full).shape == (4, 0)


def test_indices_that_are_no_tensor_are_refused():
    with pytest.raises(MapError, match="dimension 0 of .*expected a tensor of indices or None, found a list"):
        TensorMap((4,), ([0, 2],))
