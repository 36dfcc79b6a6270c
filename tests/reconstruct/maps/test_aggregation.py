"""Streaming aggregation against its definition in float64."""

from __future__ import annotations

import copy
import gc
import math
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from index_map_strategies import assert_same_bits, index_maps, tensors

from hfp.reconstruct import AGGREGATION_RULES, Aggregator, IndexMap, MapError, TensorMap
from hfp.reconstruct.maps.coverage import Coverage

SHAPES = {"conv": (4, 3, 2, 2), "deep": (3, 2, 2), "norm": (4,), "count": (), "fc": (5, 4), "bias": (5,)}
DTYPES = {"norm": torch.float64, "count": torch.int64, "bias": torch.bfloat16}


def dense(full, clients, rule):
    """The definition: every client's model filled up to the full one, then averaged entry by entry."""
    found = {}
    for name, value in full.items():
        masks = [index_map.tensors[name].mask().double() for _, index_map, _ in clients]
        filled = [index_map.embed(sub, full)[name].double() for sub, index_map, _ in clients]
        weights = [weight for _, _, weight in clients]
        if rule == "fill":
            found[name] = sum(p * w for p, w in zip(weights, filled, strict=True)) / sum(weights)
        else:
            held = sum(p * m for p, m in zip(weights, masks, strict=True))
            total = sum(p * m * w for p, m, w in zip(weights, masks, filled, strict=True))
            found[name] = torch.where(held > 0, total / held, value.double())
    return found


@st.composite
def federations(draw, most=4):
    full = {name: draw(tensors(shape, DTYPES.get(name, torch.float32))) for name, shape in SHAPES.items()}
    clients = []
    for _ in range(draw(st.integers(1, most))):
        index_map = draw(index_maps(SHAPES))
        sub = {
            name: draw(tensors(tensor.compact_shape, full[name].dtype)) for name, tensor in index_map.tensors.items()
        }
        clients.append((sub, index_map, draw(st.floats(0.25, 600))))
    return full, clients


def aggregated(full, clients, rule):
    aggregator = Aggregator(full, rule)
    for sub, index_map, weight in clients:
        aggregator.add(sub, index_map, weight)
    return aggregator.result()


@given(federations(), st.sampled_from(sorted(AGGREGATION_RULES)))
def test_streaming_equals_the_dense_definition(federation, rule):
    full, clients = federation
    before = copy.deepcopy(full)
    found, expected = aggregated(full, clients, rule), dense(full, clients, rule)
    assert list(found) == list(full)
    for name, value in found.items():
        assert value.dtype == full[name].dtype
        assert_same_bits(full[name], before[name])
        if name == "count":  # half way between two integers the last bit of a sum decides
            assert (value.double() - expected[name]).abs() <= 0.5 + 1e-9
            continue
        slack = 2**-7 if name == "bias" else 1e-12 if name == "norm" else 1e-5
        torch.testing.assert_close(value.double(), expected[name], rtol=slack, atol=slack)


@given(federations(), st.sampled_from(sorted(AGGREGATION_RULES)))
def test_entries_that_nobody_held_keep_their_value(federation, rule):
    full, clients = federation
    found = aggregated(full, clients, rule)
    for name, value in found.items():
        held = sum(index_map.tensors[name].mask().int() for _, index_map, _ in clients)
        assert torch.equal(value[held == 0], full[name][held == 0])


@settings(max_examples=5)
@given(st.sampled_from(sorted(AGGREGATION_RULES)), st.integers(63, 130))
def test_any_number_of_clients(rule, number):
    """Coverage is summed up once in a while; what came before must not be lost."""
    generator = torch.Generator().manual_seed(number)
    full = {"w": torch.randn(5, 4, generator=generator)}
    clients = []
    for client in range(number):
        rows = torch.randperm(5, generator=generator)[: 1 + client % 5].sort().values
        columns = None if client % 3 else torch.randperm(4, generator=generator)[:2].sort().values
        index_map = IndexMap({"w": TensorMap((5, 4), (rows, columns))})
        sub = {"w": torch.randn(index_map.tensors["w"].compact_shape, generator=generator)}
        clients.append((sub, index_map, 1.0 + client % 7))
    found, expected = aggregated(full, clients, rule), dense(full, clients, rule)
    torch.testing.assert_close(found["w"].double(), expected["w"], rtol=1e-5, atol=1e-5)


def test_full_participation_is_the_weighted_mean():
    full = {"w": torch.randn(3, 2), "n": torch.tensor(10)}
    states = [{"w": torch.randn(3, 2), "n": torch.tensor(n)} for n in (4, 8)]
    for rule in AGGREGATION_RULES:
        found = aggregated(
            full, [(state, IndexMap.identity(full), p) for state, p in zip(states, (3, 1), strict=True)], rule
        )
        torch.testing.assert_close(found["w"], 0.75 * states[0]["w"] + 0.25 * states[1]["w"])
        assert found["n"].item() == 5
        assert found["n"].dtype == torch.int64


def test_the_two_rules_by_hand():
    """Two clients of weights 1 and 3; the first holds entries 0 and 1, the second 1 and 2; nobody holds 3."""
    full = {"w": torch.tensor([8.0, 8.0, 8.0, 8.0])}
    maps = [IndexMap({"w": TensorMap((4,), (torch.tensor(kept),))}) for kept in ([0, 1], [1, 2])]
    clients = [({"w": torch.tensor([0.0, 4.0])}, maps[0], 1.0), ({"w": torch.tensor([0.0, 12.0])}, maps[1], 3.0)]
    assert aggregated(full, clients, "fill")["w"].tolist() == [6, 1, 11, 8]
    assert aggregated(full, clients, "holders")["w"].tolist() == [0, 1, 12, 8]


def test_memory_is_one_model_whatever_the_number_of_clients():
    """Neither submodels nor, in the long run, maps are kept."""
    full = {"w": torch.zeros(6, 6)}
    aggregator = Aggregator(full)
    states, maps = [], []
    for _ in range(200):
        index_map = IndexMap({"w": TensorMap((6, 6), (torch.tensor([0, 1]), None))})
        sub = {"w": torch.ones(2, 6)}
        aggregator.add(sub, index_map, 1.0)
        states.append(weakref.ref(sub["w"]))
        maps.append(weakref.ref(index_map.tensors["w"]))
    del index_map, sub
    gc.collect()
    assert not any(state() is not None for state in states)
    assert sum(tensor_map() is not None for tensor_map in maps) < 64


def test_results_do_not_depend_on_later_clients():
    full = {"w": torch.zeros(2)}
    aggregator = Aggregator(full)
    aggregator.add({"w": torch.ones(2)}, IndexMap.identity(full), 1.0)
    first = aggregator.result()
    assert torch.equal(aggregator.result()["w"], first["w"])
    aggregator.add({"w": torch.full((2,), 3.0)}, IndexMap.identity(full), 1.0)
    assert first["w"].tolist() == [1, 1]
    assert aggregator.result()["w"].tolist() == [2, 2]


@given(federations(), st.sampled_from(sorted(AGGREGATION_RULES)))
def test_finishing_gives_the_same_bits_as_a_result_and_ends_the_aggregation(federation, rule):
    full, clients = federation
    aggregator = Aggregator(full, rule)
    for sub, index_map, weight in clients:
        aggregator.add(sub, index_map, weight)
    expected = aggregator.result()
    found = aggregator.finish()
    assert list(found) == list(expected)
    for name, value in found.items():
        assert_same_bits(value, expected[name])
    for call in (aggregator.finish, aggregator.result, lambda: aggregator.add(*clients[0])):
        with pytest.raises(MapError, match="the aggregation is finished: make another Aggregator"):
            call()


def test_finishing_leaves_no_second_model_in_memory():
    """Each sum is given up as soon as the value that comes of it is there."""
    full = {name: torch.zeros(4) for name in "abc"}
    aggregator = Aggregator(full)
    aggregator.add(full, IndexMap.identity(full), 1.0)
    sums = [weakref.ref(total) for total in aggregator._sums.values()]
    found = aggregator.finish()
    assert all(total() is None for total in sums)
    assert list(found) == list(full)


def test_complex_tensors_are_averaged_as_they_are():
    full = {"w": torch.tensor([1 + 1j, 2 + 2j])}
    index_map = IndexMap({"w": TensorMap((2,), (torch.tensor([1]),))})
    found = aggregated(full, [({"w": torch.tensor([4 + 6j])}, index_map, 1.0)], "fill")
    assert found["w"].tolist() == [1 + 1j, 4 + 6j]


@given(st.data())
def test_coverage_is_the_weighted_sum_of_masks(data):
    clients = data.draw(st.lists(st.tuples(index_maps(SHAPES), st.floats(0.1, 10)), min_size=1, max_size=5))
    coverage = Coverage(SHAPES)
    for index_map, weight in clients:
        coverage.add(index_map.tensors, weight)
    for name, held in coverage.held().items():
        expected = sum(weight * index_map.tensors[name].mask().double() for index_map, weight in clients)
        torch.testing.assert_close(held.expand(SHAPES[name]), expected)


@pytest.mark.parametrize("weight", [0, -1.0, math.nan, math.inf])
def test_weights_that_are_no_weights_are_refused(weight):
    full = {"w": torch.zeros(2)}
    with pytest.raises(MapError, match="expected a positive, finite client weight"):
        Aggregator(full).add(full, IndexMap.identity(full), weight)


def test_unknown_rules_and_empty_rounds_are_refused():
    with pytest.raises(MapError, match="unknown aggregation rule 'mean'; known: fill, holders"):
        Aggregator({}, "mean")
    with pytest.raises(MapError, match="no client was added"):
        Aggregator({"w": torch.zeros(1)}).result()


def test_states_and_maps_of_other_models_are_refused_and_leave_no_trace():
    full = {"v": torch.zeros(2), "w": torch.zeros(3)}
    cut = IndexMap({"v": TensorMap.identity((2,)), "w": TensorMap((3,), (torch.tensor([0]),))})
    aggregator = Aggregator(full)
    aggregator.add(full, IndexMap.identity(full), 1.0)
    with pytest.raises(MapError, match=r"w: expected the compact shape \[1\], got \[3\]"):
        aggregator.add({"v": torch.ones(2), "w": torch.ones(3)}, cut, 1.0)
    with pytest.raises(MapError, match="not the full state of this map: unexpected w"):
        aggregator.add({"v": torch.ones(2)}, IndexMap({"v": TensorMap.identity((2,))}), 1.0)
    assert {name: value.tolist() for name, value in aggregator.result().items()} == {"v": [0, 0], "w": [0, 0, 0]}


@pytest.mark.parametrize("rule", AGGREGATION_RULES)
def test_entries_that_are_infinite_stay_so_whoever_holds_them(rule):
    state = {"mask": torch.full((3, 3), -math.inf).triu(1)}
    some = IndexMap({"mask": TensorMap((3, 3), (torch.tensor([0, 2]), None))})
    total = Aggregator(state, rule)
    for index_map, weight in ((IndexMap.identity(state), 1.0), (some, 3.0)):
        total.add(index_map.restrict(state), index_map, weight)
    assert torch.equal(total.result()["mask"], state["mask"])
    alone = Aggregator(state, rule)
    alone.add(some.restrict(state), some, 2.0)
    assert torch.equal(alone.result()["mask"], state["mask"])


@pytest.mark.parametrize("weight", [None, "many", "3", True, pytest.param(10**400, id="huge")])
def test_a_weight_that_is_no_number_is_refused(weight):
    state = {"bias": torch.ones(3)}
    with pytest.raises(MapError, match=f"expected a positive, finite client weight, got {weight!r}"):
        Aggregator(state).add(state, IndexMap.identity(state), weight)


def test_a_model_in_place_of_its_state_is_refused():
    with pytest.raises(MapError, match="expected a state_dict, which maps names to tensors, found a Linear"):
        Aggregator(torch.nn.Linear(2, 3))
