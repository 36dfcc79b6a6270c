"""Private updates against their definition, and the privacy spent against closed forms."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from federated import begin, collected, context_of, made_up, small_network

from hfp.errors import InputError
from hfp.federation.privacy import check_private, clipping, private_statistics, private_update
from hfp.federation.privacy_account import Privacy, epsilon
from hfp.methods import create_method

TINY = 1e-12


@pytest.fixture(scope="module", params=["fedavg", "ca-hfp", "fedmp"])
def a_round(request):
    method, model = create_method(request.param), small_network()
    context = context_of(model)
    state = begin(model, method, context)
    return method, context, state, list(made_up(context, method, state))


def change_of(update, state, name):
    """One client's change in the full model's shape: zero where it holds nothing."""
    place = update.task.index_map.tensors[name]
    return place.embed(update.reply.tensors[name], state.weights[name]) - state.weights[name]


def test_without_noise_it_is_the_sum_of_clipped_changes_over_a_fixed_number(a_round):
    _, context, state, updates = a_round
    made = private_update(Privacy(noise=TINY, clip=0.5), context, state, updates, expected=4, seed=0, steps=1)
    lengths = [
        math.sqrt(sum(float(change_of(update, state, name).square().sum()) for name in context.parameters))
        for update in updates
    ]
    for name in context.parameters:
        expected = sum(
            min(1, 0.5 / length) * change_of(u, state, name) for u, length in zip(updates, lengths, strict=True)
        )
        torch.testing.assert_close(made.reply.tensors[name], state.weights[name] + expected / 4, rtol=1e-9, atol=1e-9)
    others = state.weights.keys() - set(context.parameters)
    assert all(torch.equal(made.reply.tensors[name], state.weights[name]) for name in others)


def test_leaving_one_client_out_moves_the_sum_by_no_more_than_the_clip_length(a_round):
    _, context, state, updates = a_round
    privacy = Privacy(noise=TINY, clip=0.3)
    whole = private_update(privacy, context, state, updates, expected=3, seed=0, steps=1).reply.tensors
    for left_out in range(len(updates)):
        fewer = [update for index, update in enumerate(updates) if index != left_out]
        part = private_update(privacy, context, state, fewer, expected=3, seed=0, steps=1).reply.tensors
        moved = sum(float((whole[name] - part[name]).square().sum()) for name in context.parameters)
        assert 3 * math.sqrt(moved) <= 0.3 * (1 + 1e-6)


def test_every_entry_gets_noise_of_the_stated_deviation(a_round):
    _, context, state, updates = a_round
    privacy = Privacy(noise=2.0, clip=0.5)
    made = private_update(privacy, context, state, updates, expected=5, seed=1, steps=1).reply.tensors
    quiet = private_update(
        dataclasses.replace(privacy, noise=TINY), context, state, updates, expected=5, seed=1, steps=1
    ).reply.tensors
    noise = torch.cat([(made[name] - quiet[name]).flatten() for name in context.parameters])
    assert (noise != 0).all()
    assert float(noise.std()) == pytest.approx(2.0 * 0.5 / 5, rel=0.05)
    again = private_update(privacy, context, state, updates, expected=5, seed=1, steps=1).reply.tensors
    assert all(torch.equal(made[name], again[name]) for name in made)


def test_the_next_masks_follow_from_noised_values_alone():
    method, model = create_method("ca-hfp"), small_network()
    context = context_of(model)
    state = begin(model, method, context)
    updates = list(made_up(context, method, state))
    made = private_update(Privacy(noise=1.0), context, state, updates, expected=3, seed=0, steps=1)
    after = collected(context, method, state, [made])
    reply = dataclasses.replace(updates[0].reply, loss=7.0, steps=9 * updates[0].reply.steps)
    other = dataclasses.replace(updates[0], reply=reply)
    again = private_update(Privacy(noise=1.0), context, state, [other, *updates[1:]], expected=3, seed=0, steps=1)
    same = collected(context, method, state, [again])
    assert all(torch.equal(after.weights[name], same.weights[name]) for name in after.weights)
    for name, curvature in after.method_state.variation.curvature.items():
        assert torch.equal(curvature, same.method_state.variation.curvature[name])
    for client in context.clients:
        assert method.plan(context, after, client) == method.plan(context, same, client)


def test_statistics_are_clipped_and_pooled_over_a_fixed_number():
    before = {"bn.running_mean": torch.zeros(2), "bn.running_var": torch.ones(2)}
    own = [
        {"bn.running_mean": torch.tensor([3.0, 4.0]), "bn.running_var": torch.ones(2)},
        {"bn.running_mean": torch.tensor([0.5, 0.0]), "bn.running_var": torch.ones(2)},
    ]
    made = private_statistics(Privacy(noise=TINY, statistics_clip=1.0), before, own, 2, torch.Generator())
    torch.testing.assert_close(made["bn.running_mean"], torch.tensor([(0.6 + 0.5) / 2, 0.4]))
    drowned = private_statistics(Privacy(noise=9.0), before, own, 2, torch.Generator().manual_seed(0))
    assert (drowned["bn.running_var"] > 0).all()


def test_clipping_leaves_short_changes_alone():
    assert clipping([torch.tensor([0.3, 0.4])], 1.0) == 1.0
    assert clipping([torch.tensor([3.0]), torch.tensor([4.0])], 1.0) == pytest.approx(0.2)


def renyi_bound(noise: float, rounds: int, delta: float) -> float:
    """The plain bound of Gaussian noise, over integer and half orders."""
    orders = [1 + step / 10 for step in range(1, 1000)]
    return min(rounds * a / (2 * noise**2) + math.log(1 / delta) / (a - 1) for a in orders)


@pytest.mark.parametrize(("noise", "rounds"), [(1.0, 1), (4.0, 10), (8.0, 30)])
def test_the_privacy_spent_is_below_the_plain_bound_and_near_it(noise, rounds):
    pytest.importorskip("dp_accounting")
    spent = epsilon(Privacy(noise=noise), 10, 10, rounds, 0)
    assert 0.6 * renyi_bound(noise, rounds, 1e-5) < spent <= renyi_bound(noise, rounds, 1e-5) * 1.001


def test_the_privacy_spent_is_the_accountants_own_figure_with_sampled_clients():
    dp = pytest.importorskip("dp_accounting")
    from dp_accounting import rdp

    accountant = rdp.RdpAccountant(neighboring_relation=dp.NeighboringRelation.REPLACE_ONE)
    accountant.compose(dp.SampledWithoutReplacementDpEvent(1000, 10, dp.GaussianDpEvent(1.0)), 50)
    accountant.compose(dp.GaussianDpEvent(1.0), 1)
    assert epsilon(Privacy(noise=2.0), 10, 1000, 50, 1) == pytest.approx(accountant.get_epsilon(1e-5))
    assert epsilon(Privacy(noise=2.0), 10, 1000, 50, 0) < epsilon(Privacy(noise=2.0), 1000, 1000, 50, 0)


def test_each_release_of_statistics_is_counted():
    pytest.importorskip("dp_accounting")
    privacy = Privacy(noise=4.0)
    assert epsilon(privacy, 10, 10, 5, 5) == pytest.approx(epsilon(privacy, 10, 10, 10, 0))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("dapperfl", {}),
        ("heterofl", {}),
        ("fedrolex", {}),
        ("prunefl", {}),
        ("fedrts", {}),
        ("fiarse", {"structured": False}),
        ("fedmp", {"bandit": True}),
        ("fedmp-bandit", {}),
    ],
)
def test_a_method_that_reads_more_than_submodels_is_refused(name, options):
    with pytest.raises(InputError, match="can't run privately"):
        check_private(create_method(name, **options))


@pytest.mark.parametrize("name", ["ca-hfp", "fedprox", "fjord", "fedmp", "fiarse", "depthfl"])
def test_a_method_that_averages_submodels_is_not_refused(name):
    check_private(create_method(name))


@pytest.mark.parametrize("values", [{"noise": 0.0}, {"noise": 1.0, "clip": -1.0}, {"noise": 1.0, "delta": 1.0}])
def test_numbers_out_of_range_are_refused(values):
    with pytest.raises(InputError, match="privacy's"):
        Privacy(**values)
