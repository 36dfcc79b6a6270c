"""How near a plan comes to a budget."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hfp.errors import InputError
from hfp.pruning.meeting import NEAR, meet
from hfp.pruning.schedule import Bundle, Order, RankingRules


def bundle(**scores: list[float]) -> Bundle:
    return Bundle({name: torch.tensor(values) for name, values in scores.items()}, dict.fromkeys(scores, (1,)))


def cost(kept) -> float:
    """Quadratic, as a network's is: the product of neighbours' channels, of 40 * 40 + 40 * 20."""
    return (len(kept["a"]) * len(kept["b"]) + len(kept["b"]) * len(kept["c"])) / 2400


def costs(kept) -> dict[str, float]:
    return {"macs": cost(kept)}


def nothing_can_be_put_back(kept, sizes: dict[str, int], target: float) -> bool:
    wider = [{**kept, name: range(len(kept[name]) + 1)} for name, size in sizes.items() if len(kept[name]) < size]
    return all(cost(each) > target for each in wider)


@given(st.floats(0.05, 1.0), st.sampled_from(["layer", "global"]), st.integers(0, 5))
def test_budgets_are_met_from_below_and_the_lowest_scores_of_a_group_go(target, ranking, seed):
    draw = torch.Generator().manual_seed(seed)
    bundles = [
        bundle(**{name: torch.rand(size, generator=draw).tolist()}) for name, size in (("a", 40), ("b", 40), ("c", 20))
    ]
    kept = meet(Order.of(bundles, RankingRules(ranking)), {"macs": target}, costs)
    assert cost(kept) <= target
    assert target * (1 - NEAR) <= cost(kept) or nothing_can_be_put_back(kept, {"a": 40, "b": 40, "c": 20}, target)
    for each in bundles:
        ((name, scores),) = each.scores.items()
        gone = [scores[c] for c in range(len(scores)) if c not in kept[name]]
        assert not gone or max(gone) <= min(scores[c] for c in kept[name])


def blocks(fine: list[int], coarse: int):
    """Groups beside one whose channels are worth many of theirs: [bundles, what a plan costs]."""
    sizes = {f"f{place}": size for place, size in enumerate(fine)}
    names = [*sizes, "wide"]
    bundles = [bundle(**{name: list(map(float, range(size)))}) for name, size in (sizes | {"wide": coarse}).items()]
    total = sum(fine) * coarse + coarse * coarse

    def taken(kept) -> dict[str, float]:
        wide = len(kept["wide"])
        return {"macs": (sum(len(kept[name]) for name in sizes) * wide + wide * coarse) / total}

    return bundles, names, taken


@given(st.floats(0.15, 0.95), st.lists(st.integers(8, 40), min_size=1, max_size=4), st.integers(2, 8))
def test_a_coarse_group_does_not_keep_the_others_from_coming_near(target, fine, coarse):
    bundles, _, taken = blocks(fine, coarse)
    kept = meet(Order.of(bundles, RankingRules()), {"macs": target}, taken)
    step = coarse / (sum(fine) * coarse + coarse * coarse)  # of one channel of a fine group at full width
    assert taken(kept)["macs"] <= target
    assert taken(kept)["macs"] >= min(target * (1 - NEAR), target - step) - 1e-9


def test_the_order_alone_is_further_away_than_what_is_found():
    bundles, _, taken = blocks([64, 64], 8)
    order = Order.of(bundles, RankingRules())
    along = [taken(order.kept(count))["macs"] for count in range(len(order.events) + 1)]
    nearest = max(share for share in along if share <= 0.66)
    found = taken(meet(order, {"macs": 0.66}, taken))["macs"]
    assert nearest < 0.6
    assert 0.66 * (1 - NEAR) <= found <= 0.66


def test_small_models_come_as_near_as_any_plan_would():
    bundles, names, taken = blocks([5, 4], 3)
    order = Order.of(bundles, RankingRules())
    sizes = {name: len(scores) for each in bundles for name, scores in each.scores.items()}
    plans = [
        dict(zip(names, map(range, plan), strict=True))
        for plan in itertools.product(*(range(1, sizes[name] + 1) for name in names))
    ]
    within = 0
    for target in (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9):
        best = max(share for plan in plans if (share := taken(plan)["macs"]) <= target)
        found = taken(meet(order, {"macs": target}, taken))["macs"]
        assert found <= target
        within += math.isclose(found, best) or found >= target * (1 - NEAR)
    assert within >= 6


def test_several_limits_are_all_met_and_the_nearest_one_is_near():
    bundles = [bundle(**{name: list(map(float, range(size)))}) for name, size in (("a", 40), ("b", 40), ("c", 20))]

    def both(kept) -> dict[str, float]:
        return {"macs": cost(kept), "params": sum(map(len, kept.values())) / 100}

    for limits in ({"macs": 0.5, "params": 0.9}, {"macs": 0.9, "params": 0.5}, {"macs": 0.3, "params": 0.55}):
        found = both(meet(Order.of(bundles, RankingRules()), limits, both))
        shares = [found[name] / limit for name, limit in limits.items()]
        assert 1 - NEAR <= max(shares) <= 1


def test_any_distance_is_a_result_unless_a_tolerance_is_given():
    order = Order.of([bundle(a=[1.0, 2.0], b=[1.0, 2.0], c=[1.0, 2.0])], RankingRules())
    assert meet(order, {"macs": 0.002}, costs) == {"a": [1], "b": [1], "c": [1]}
    with pytest.raises(
        InputError,
        match=r"0.002 can't be met within 10.00%: 0.0008333 .* \(the last step to it is in layers 'a', 'b', 'c'\);",
    ):
        meet(order, {"macs": 0.002}, costs, tolerance=0.1)


def test_a_layer_whose_name_is_a_number_is_called_a_layer():
    order = Order.of([bundle(**{"3": [1.0, 2.0]})], RankingRules())
    with pytest.raises(InputError, match=r"0.5 of the full model's is the nearest below it \(.* in layer '3'\);"):
        meet(order, {"macs": 0.9}, lambda kept: {"macs": len(kept["3"]) / 2}, tolerance=0.1)


def test_a_small_tolerance_makes_the_search_go_on():
    bundles, _, taken = blocks([400, 400], 8)
    for target in (0.31, 0.47, 0.52, 0.66):
        found = taken(meet(Order.of(bundles, RankingRules()), {"macs": target}, taken, tolerance=0.006))["macs"]
        assert target * 0.994 <= found <= target


def test_unreachable_budgets_say_what_is_reachable():
    order = Order.of([bundle(a=[1.0, 2.0], b=[1.0, 2.0], c=[1.0, 2.0])], RankingRules())
    with pytest.raises(InputError, match="macs can't go down to 0.0001 of the full model's: 0.0008333 is the least"):
        meet(order, {"macs": 0.0001}, costs)


def test_latency_is_met_by_the_order_alone():
    order = Order.of([bundle(a=[1.0, 2.0], b=[1.0, 2.0], c=[1.0, 2.0])], RankingRules())
    calls: list[int] = []

    def timed(kept) -> dict[str, float]:
        calls.append(1)
        return {"latency": cost(kept)}

    assert meet(order, {"latency": 0.002}, timed) == {"a": [1], "b": [1], "c": [1]}
    assert len(calls) == 2


def test_one_group_may_go_back_a_step_while_another_goes_on():
    draw = torch.Generator().manual_seed(0)
    sizes = (("a", 40), ("b", 40), ("c", 20))
    bundles = [bundle(**{name: torch.rand(size, generator=draw).tolist()}) for name, size in sizes]
    kept = meet(Order.of(bundles, RankingRules("global")), {"macs": 0.0625}, costs)
    assert cost(kept) == pytest.approx(144 / 2400)  # 143 / 2400 by whole groups that follow the order
