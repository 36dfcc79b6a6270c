"""Every sample goes to exactly one client, whatever the scheme and however extreme alpha is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hfp.data import partition, schemes
from hfp.errors import InputError


def assert_disjoint_cover(parts: list[np.ndarray], samples: int) -> None:
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(samples))
    for part in parts:
        assert part.dtype == np.int64
        assert np.all(np.diff(part) > 0)


def largest_share_of_a_class(parts: list[np.ndarray], labels: np.ndarray) -> float:
    """Mean over classes of the largest part that one client holds of it."""
    held = np.stack([np.bincount(labels[part], minlength=labels.max() + 1) for part in parts])
    return float((held.max(axis=0) / held.sum(axis=0)).mean())


@st.composite
def partitions(draw: st.DrawFn) -> dict:
    clients = draw(st.integers(1, 12))
    minimum = draw(st.integers(1, 4))
    shards = draw(st.integers(1, 4))
    classes = draw(st.integers(1, 5))
    samples = draw(st.integers(clients * max(minimum, shards), 120))
    return {
        "labels": np.random.default_rng(draw(st.integers(0, 99))).integers(classes, size=samples),
        "clients": clients,
        "scheme": draw(st.sampled_from(schemes())),
        "alpha": draw(st.sampled_from([5e-324, 1e-6, 0.1, 1.0, 10.0, 1e6, 1.7e308])),
        "shards_per_client": shards,
        "seed": draw(st.integers(0, 2**32)),
        "minimum": minimum,
    }


@settings(max_examples=150, deadline=None)
@given(partitions())
def test_every_sample_has_one_client_and_every_client_its_minimum(arguments: dict) -> None:
    parts = partition(**arguments)
    assert len(parts) == arguments["clients"]
    assert_disjoint_cover(parts, len(arguments["labels"]))
    assert min(map(len, parts)) >= arguments["minimum"]
    for part, again in zip(parts, partition(**arguments), strict=True):
        assert np.array_equal(part, again)


def test_cover_check_fails_on_a_sample_dealt_twice() -> None:
    with pytest.raises(AssertionError):
        assert_disjoint_cover([np.array([0, 1]), np.array([1, 2])], 3)


def test_the_exact_number_of_samples_is_enough() -> None:
    parts = partition(np.zeros(12, dtype=int), 4, alpha=1e-6, minimum=3)
    assert [len(part) for part in parts] == [3, 3, 3, 3]


def test_seeds_draw_different_partitions() -> None:
    labels = np.arange(1000) % 10
    for scheme in schemes():
        first, second = (partition(labels, 5, scheme, seed=seed) for seed in (0, 1))
        assert any(not np.array_equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize(
    ("alpha", "low", "high"), [(1e-6, 0.99, 1.0), (0.1, 0.5, 0.95), (1e6, 0.1, 0.11), (1.7e308, 0.1, 0.11)]
)
def test_alpha_sets_the_concentration(alpha: float, low: float, high: float) -> None:
    labels = np.repeat(np.arange(10), 1000)
    parts = [partition(labels, 10, alpha=alpha, seed=seed) for seed in range(5)]
    assert low <= np.mean([largest_share_of_a_class(part, labels) for part in parts]) <= high


def test_dirichlet_shares_have_the_variance_of_the_distribution() -> None:
    labels = np.zeros(10_000, dtype=int)
    shares = np.array([[len(part) / 10_000 for part in partition(labels, 4, alpha=1.0, seed=s)] for s in range(400)])
    assert shares.mean(axis=0) == pytest.approx([0.25] * 4, abs=0.03)
    assert shares.var(axis=0) == pytest.approx([0.25 * 0.75 / 5] * 4, rel=0.25)


@pytest.mark.parametrize("scheme", schemes())
def test_samples_of_one_class_are_dealt_in_random_order(scheme: str) -> None:
    parts = partition(np.zeros(1000, dtype=int), 4, scheme, alpha=1e6)
    assert all(np.abs(np.median(part) - 500) < 100 for part in parts)


def test_iid_parts_are_equal_and_mixed() -> None:
    labels = np.repeat(np.arange(10), 100)
    parts = partition(labels, 8, "iid")
    assert {len(part) for part in parts} == {125}
    assert all(len(np.unique(labels[part])) == 10 for part in parts)


def test_shards_give_each_client_few_classes() -> None:
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 100))
    parts = partition(labels, 10, "shards", shards_per_client=2)
    assert {len(part) for part in parts} == {100}
    assert all(len(np.unique(labels[part])) <= 2 for part in parts)


def test_labels_may_be_a_tensor_of_any_values() -> None:
    labels = torch.tensor([7, -1, 7, -1, 40, 40])
    for ours, theirs in zip(partition(labels, 2), partition([1, 0, 1, 0, 2, 2], 2), strict=True):
        assert np.array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"alpha": 0.0}, "alpha must be a positive finite number, found 0.0"),
        ({"alpha": -1.0}, "alpha must be a positive finite number, found -1.0"),
        ({"alpha": float("nan")}, "alpha must be .* found nan"),
        ({"alpha": float("inf")}, "alpha must be .* found inf"),
        ({"clients": 0}, "clients must be 1 or more, found 0"),
        ({"minimum": 0}, "minimum must be 1 or more, found 0"),
        ({"shards_per_client": 0}, "shards_per_client must be 1 or more, found 0"),
        ({"clients": 21}, "21 clients with at least 1 sample each need 21 samples, found 20; take fewer clients"),
        ({"minimum": 6}, "4 clients with at least 6 samples each need 24 samples, found 20"),
        ({"scheme": "shards", "shards_per_client": 6}, "4 clients with at least 6 samples each need 24 samples"),
        ({"labels": []}, "need 4 samples, found 0"),
        ({"scheme": "dirichelt"}, "unknown partition scheme 'dirichelt'; did you mean dirichlet?"),
        ({"seed": -1}, "seed must be 0 or more, found -1"),
    ],
)
def test_wrong_arguments_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        partition(**{"labels": np.zeros(20, dtype=int), "clients": 4, **arguments})
