"""Budgets, and the order in which channels go."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hfp.errors import InputError
from hfp.pruning.budget import Budget
from hfp.pruning.schedule import Bundle, Earlier, Order, RankingRules


@pytest.mark.parametrize(
    ("given_", "message"),
    [
        ({}, "at least one of macs, params, bytes, latency, ratio; none is given"),
        ({"tolerance": 0.1}, "at least one of macs, params, bytes, latency, ratio; none is given"),
        ({"macs": 0.5, "ratio": 0.5}, "ratio says how many channels go; it can't be given with another limit"),
        ({"ratio": 0.5, "tolerance": 0.1}, "ratio says how many channels go; it can't be given with another limit"),
        ({"macs": 0.5, "params": 2}, "params is the share that remains, above 0 and at most 1, not 2"),
        ({"macs": 0.5, "tolerance": -0.1}, "tolerance is a share of its limit, at least 0 and below 1"),
        ({"macs": 0}, "macs is the share that remains, above 0 and at most 1"),
        ({"params": 1.5}, "params is the share that remains"),
        ({"ratio": 1}, "ratio is the share of channels removed, at least 0 and below 1"),
        ({"bytes": "half"}, "bytes is a number, not 'half'"),
        ({"latency": float("nan")}, "latency is a number, not nan"),
        ({"macs": True}, "macs is a number, not True"),
    ],
)
def test_a_budget_is_sensible_shares(given_, message):
    with pytest.raises(InputError, match=message):
        Budget(**given_)


def test_a_budget_in_steps_ends_at_itself():
    assert [Budget(macs=0.4).part(step, 3).macs for step in (1, 2, 3)] == pytest.approx([0.8, 0.6, 0.4])
    assert [Budget(ratio=0.6).part(step, 3).ratio for step in (1, 2, 3)] == pytest.approx([0.2, 0.4, 0.6])
    both = Budget(macs=0.4, params=0.7, tolerance=0.01)
    assert dict(both.part(1, 3).limits) == pytest.approx({"macs": 0.8, "params": 0.9})
    assert both.part(3, 3) == both


def test_a_budget_reads_as_it_is_written():
    assert str(Budget(bytes=0.25)) == "bytes=0.25"
    assert repr(Budget(macs=0.5, params=0.6)) == "Budget(macs=0.5, params=0.6)"
    assert eval(repr(Budget(macs=0.5, tolerance=0.01))) == Budget(macs=0.5, tolerance=0.01)
    assert "<td>0.5</td>" in Budget(macs=0.5)._repr_html_()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ranking": "local"}, "ranking is one of layer, global, isomorphic, measured, not 'local'"),
        ({"round_to": 0}, "round_to is a whole number of channels"),
        ({"min_channels": 0}, "min_channels is a whole number of channels"),
        ({"min_channels": 2.0}, "min_channels is a whole number of channels"),
    ],
)
def test_rules_are_checked(options, message):
    with pytest.raises(InputError, match=message):
        RankingRules(**options)


def bundle(**scores: list[float]) -> Bundle:
    return Bundle({name: torch.tensor(values) for name, values in scores.items()}, dict.fromkeys(scores, (1,)))


def test_the_lowest_scores_go_first():
    order = Order.of([bundle(a=[3.0, 1.0, 4.0, 2.0])], RankingRules())
    assert order.until(0.5) == {"a": [0, 2]}
    assert order.until(0.99) == {"a": [2]}
    assert order.until(0.0) == {"a": [0, 1, 2, 3]}


def test_global_ranking_takes_the_lowest_wherever_they_are():
    bundles = [bundle(a=[1.0, 2.0, 3.0, 4.0]), bundle(b=[10.0, 20.0, 30.0, 40.0])]
    assert Order.of(bundles, RankingRules("global")).until(0.4) == {"a": [3], "b": [0, 1, 2, 3]}
    assert Order.of(bundles, RankingRules("layer")).until(0.4) == {"a": [1, 2, 3], "b": [1, 2, 3]}


@pytest.mark.parametrize("ranking", ["global", "isomorphic"])
def test_equal_scores_go_evenly_from_all_groups(ranking):
    order = Order.of([bundle(a=[0.0] * 4), bundle(b=[0.0] * 8)], RankingRules(ranking))
    assert {name: len(kept) for name, kept in order.until(0.5).items()} == {"a": 2, "b": 4}


def test_isomorphic_ranking_compares_only_bundles_of_one_structure():
    def like(structure, **scores):
        return dataclasses.replace(bundle(**scores), structure=structure)

    bundles = [like("conv", a=[1.0, 2.0, 3.0, 4.0]), like("conv", b=[1.5, 9.0]), like("norm", c=[70.0, 80.0, 90.0])]
    order = Order.of(bundles, RankingRules("isomorphic"))
    assert order.until(0.35) == {"a": [1, 2, 3], "b": [1], "c": [1, 2]}
    assert order.until(0.7) == {"a": [3], "b": [1], "c": [2]}


@given(st.lists(st.lists(st.floats(-9, 9), min_size=2, max_size=6), min_size=1, max_size=4), st.floats(0, 0.9))
def test_isomorphic_ranking_is_the_global_one_where_all_have_one_structure(scores, share):
    bundles = [bundle(**{f"g{place}": own}) for place, own in enumerate(scores)]
    isomorphic, overall = (Order.of(bundles, RankingRules(ranking)) for ranking in ("isomorphic", "global"))
    assert isomorphic.until(share) == overall.until(share)


@given(st.lists(st.lists(st.floats(-9, 9), min_size=2, max_size=6), min_size=1, max_size=4), st.floats(0, 0.9))
def test_isomorphic_ranking_takes_the_same_share_of_each_group_where_all_differ(scores, share):
    bundles = [dataclasses.replace(bundle(**{f"g{at}": own}), structure=at) for at, own in enumerate(scores)]
    isomorphic, each = (Order.of(bundles, RankingRules(ranking)) for ranking in ("isomorphic", "layer"))
    assert isomorphic.events == each.events


def after_one_step(sizes: dict[str, int], left: dict[str, int]) -> Earlier:
    return Earlier().then(sizes, {name: range(count) for name, count in left.items()})


@pytest.mark.parametrize("ranking", ["layer", "global", "isomorphic"])
def test_channels_that_earlier_steps_removed_count(ranking):
    bundles, earlier = (
        [bundle(a=[1.0, 2.0, 3.0]), bundle(b=[1.5, 2.5, 3.5])],
        after_one_step({"a": 4, "b": 4}, {"a": 3, "b": 3}),
    )
    order = Order.of(bundles, RankingRules(ranking), earlier)
    assert order.until(0.5) == {"a": [1, 2], "b": [1, 2]}
    assert order.until(0.2) == {"a": [0, 1, 2], "b": [0, 1, 2]}


@pytest.mark.parametrize("ranking", ["layer", "isomorphic"])
def test_what_lost_more_in_earlier_steps_waits_for_the_others(ranking):
    bundles = [dataclasses.replace(bundle(**{name: [1.0, 2.0, 3.0, 4.0]}), structure=name) for name in "ab"]
    order = Order.of(bundles, RankingRules(ranking), after_one_step({"a": 8, "b": 5}, {"a": 4, "b": 4}))
    assert order.kept(2) == {"a": [0, 1, 2, 3], "b": [2, 3]}
    assert order.kept(3) == {"a": [1, 2, 3], "b": [2, 3]}


@pytest.mark.parametrize("ranking", ["global", "isomorphic"])
def test_groups_that_earlier_steps_left_a_single_channel_still_count(ranking):
    order = Order.of(
        [bundle(a=[1.0, 2.0, 3.0])], RankingRules(ranking), after_one_step({"a": 4, "b": 4}, {"a": 3, "b": 1})
    )
    assert order.until(0.5) == {"a": [0, 1, 2]}
    assert order.until(0.63) == {"a": [1, 2]}


@pytest.mark.parametrize("ranking", ["layer", "global", "isomorphic"])
def test_channels_that_are_divided_otherwise_in_a_later_step_are_counted_in_those_of_the_full_model(ranking):
    earlier = after_one_step({"a": 4}, {"a": 3})  # three groups of eight outputs; now they are eight channels of three
    order = Order.of([bundle(a=[float(place) for place in range(8)])], RankingRules(ranking), earlier)
    assert [len(order.until(share)["a"]) for share in (0.3, 0.5, 0.8)] == [8, 6, 3]
    assert earlier.then({"a": 8}, {"a": range(4)}).ratio == pytest.approx(1 - 1.5 / 4)


def test_linked_groups_lose_the_same_share():
    order = Order.of([bundle(a=[0.0, 1, 2, 3, 4, 5], b=[2.0, 1.0])], RankingRules())
    assert order.until(0.5) == {"a": [3, 4, 5], "b": [0]}
    assert order.until(0.49) == {"a": [0, 1, 2, 3, 4, 5], "b": [0, 1]}


def test_rounding_counts_the_layer_s_own_channels():
    wide = Bundle({"heads": torch.arange(6.0)}, {"heads": (4,)})
    left = {
        count * 4
        for count in (
            len(Order.of([wide], RankingRules(round_to=8)).until(share)["heads"]) for share in (0.2, 0.5, 0.9)
        )
    }
    assert left == {24, 16, 8}
    plain = Order.of([bundle(a=[float(v) for v in range(20)])], RankingRules(round_to=8, min_channels=8))
    assert [len(plain.until(share)["a"]) for share in (0.1, 0.2, 0.7, 0.9)] == [20, 16, 8, 8]


def test_rounding_and_the_least_width_hold_for_every_layer_that_a_group_reaches():
    wide = Bundle({"a": torch.arange(32.0)}, {"a": (1, 2)})  # 32 channels here, 64 there
    assert {32 - level for level in wide.levels(RankingRules(round_to=8))} == {32, 24, 16, 8}
    assert max(wide.levels(RankingRules(min_channels=6))) == 26
