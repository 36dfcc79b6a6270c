"""Budgets, and the order in which channels go."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hfp.errors import InputError
from hfp.pruning.budget import Budget
from hfp.pruning.schedule import Bundle, Order, RankingRules, meet, search


@pytest.mark.parametrize(
    ("given_", "message"),
    [
        ({}, "exactly one of macs, params, bytes, latency, ratio; 0 are given"),
        ({"macs": 0.5, "ratio": 0.5}, "2 are given"),
        ({"macs": 0}, "macs is the share that remains, above 0 and at most 1"),
        ({"params": 1.5}, "params is the share that remains"),
        ({"ratio": 1}, "ratio is the share of channels removed, at least 0 and below 1"),
        ({"bytes": "half"}, "bytes is a number, not 'half'"),
        ({"latency": float("nan")}, "latency is a number, not nan"),
        ({"macs": True}, "macs is a number, not True"),
    ],
)
def test_a_budget_is_one_sensible_share(given_, message):
    with pytest.raises(InputError, match=message):
        Budget(**given_)


def test_a_budget_in_steps_ends_at_itself():
    assert [Budget(macs=0.4).part(step, 3).share for step in (1, 2, 3)] == pytest.approx([0.8, 0.6, 0.4])
    assert [Budget(ratio=0.6).part(step, 3).share for step in (1, 2, 3)] == pytest.approx([0.2, 0.4, 0.6])
    assert str(Budget(bytes=0.25)) == "bytes=0.25"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ranking": "local"}, "ranking is one of layer, global, measured, not 'local'"),
        ({"round_to": 0}, "round_to is a whole number of channels"),
        ({"min_channels": 0}, "min_channels is a whole number of channels"),
        ({"min_channels": 2.0}, "min_channels is a whole number of channels"),
    ],
)
def test_rules_are_checked(options, message):
    with pytest.raises(InputError, match=message):
        RankingRules(**options)


def bundle(**scores: list[float]) -> Bundle:
    return Bundle({name: torch.tensor(values) for name, values in scores.items()}, dict.fromkeys(scores, 1))


def test_the_lowest_scores_go_first():
    order = Order.of([bundle(a=[3.0, 1.0, 4.0, 2.0])], RankingRules())
    assert order.until(0.5) == {"a": [0, 2]}
    assert order.until(0.99) == {"a": [2]}
    assert order.until(0.0) == {"a": [0, 1, 2, 3]}


def test_global_ranking_takes_the_lowest_wherever_they_are():
    bundles = [bundle(a=[1.0, 2.0, 3.0, 4.0]), bundle(b=[10.0, 20.0, 30.0, 40.0])]
    assert Order.of(bundles, RankingRules("global")).until(0.4) == {"a": [3], "b": [0, 1, 2, 3]}
    assert Order.of(bundles, RankingRules("layer")).until(0.4) == {"a": [1, 2, 3], "b": [1, 2, 3]}


def test_linked_groups_lose_the_same_share():
    order = Order.of([bundle(a=[0.0, 1, 2, 3, 4, 5], b=[2.0, 1.0])], RankingRules())
    assert order.until(0.5) == {"a": [3, 4, 5], "b": [0]}
    assert order.until(0.49) == {"a": [0, 1, 2, 3, 4, 5], "b": [0, 1]}


def test_rounding_counts_the_layer_s_own_channels():
    wide = Bundle({"heads": torch.arange(6.0)}, {"heads": 4})
    left = {
        count * 4
        for count in (
            len(Order.of([wide], RankingRules(round_to=8)).until(share)["heads"]) for share in (0.2, 0.5, 0.9)
        )
    }
    assert left == {24, 16, 8}
    plain = Order.of([bundle(a=[float(v) for v in range(20)])], RankingRules(round_to=8, min_channels=8))
    assert [len(plain.until(share)["a"]) for share in (0.1, 0.2, 0.7, 0.9)] == [20, 16, 8, 8]


def cost(kept) -> float:
    """Quadratic, as a network's is: the product of neighbours' channels, of 40 * 40 + 40 * 20."""
    return (len(kept["a"]) * len(kept["b"]) + len(kept["b"]) * len(kept["c"])) / 2400


@given(st.floats(0.05, 1.0), st.sampled_from(["layer", "global"]), st.integers(0, 5))
def test_budgets_are_met_from_below_within_two_percent(target, ranking, seed):
    draw = torch.Generator().manual_seed(seed)
    bundles = [
        bundle(**{name: torch.rand(size, generator=draw).tolist()}) for name, size in (("a", 40), ("b", 40), ("c", 20))
    ]
    try:
        kept = meet(Order.of(bundles, RankingRules(ranking)), target, cost, "macs", exact=True)
    except InputError as error:
        assert "of the full model's" in str(error)
        return
    assert target * 0.98 <= cost(kept) <= target
    for each in bundles:
        ((name, scores),) = each.scores.items()
        gone = [scores[c] for c in range(len(scores)) if c not in kept[name]]
        assert not gone or max(gone) <= min(scores[c] for c in kept[name])


def test_most_budgets_can_be_met():
    bundles = [bundle(**{name: list(map(float, range(size)))}) for name, size in (("a", 40), ("b", 40), ("c", 20))]
    for target in (0.9, 0.7, 0.5, 0.3, 0.1):
        assert meet(Order.of(bundles, RankingRules()), target, cost, "macs", exact=True)


def test_unreachable_budgets_say_what_is_reachable():
    order = Order.of([bundle(a=[1.0, 2.0], b=[1.0, 2.0], c=[1.0, 2.0])], RankingRules())
    with pytest.raises(InputError, match="can't go down to 0.0001 of the full model's: 0.0008333 is the least"):
        meet(order, 0.0001, cost, "macs", exact=True)
    with pytest.raises(InputError, match=r"the next channels to go, of a, b, c, lead from 0.003333 to 0.0008333"):
        meet(order, 0.002, cost, "macs", exact=True)
    assert meet(order, 0.002, cost, "latency", exact=False) == {"a": [1], "b": [1], "c": [1]}


@given(st.integers(0, 50), st.integers(0, 60))
def test_search_finds_the_first(count, first):
    assert search(count, lambda value: value >= first) == min(first, count)
