"""FedMP: l1 norms of filters, the same ratio everywhere, residual recovery and a plain mean."""

import dataclasses
import math

import pytest
import torch
from federated import assigned, begin, context_of, dense, held, one_round, small_network, update_of

from hfp.costs.devices import Seconds
from hfp.errors import InputError
from hfp.methods import Client, create_method
from hfp.methods.blocks.eucb import Bandit
from hfp.methods.blocks.selection import keep_best
from hfp.methods.interface.values import Update

WRITERS = {
    "stem.0": ["stem.0.weight", "blocks.0.second.0.weight"],
    "blocks.0.first.0": ["blocks.0.first.0.weight"],
    "blocks.1.first.0": ["blocks.1.first.0.weight"],
    "blocks.1.second.0": ["blocks.1.second.0.weight", "blocks.1.shortcut.0.weight"],
    "blocks.2.second.0": ["blocks.2.second.0.weight", "blocks.2.shortcut.0.weight"],
}
"""The layers whose filters make the channels of some of the coupled groups of the small network."""


@pytest.fixture(scope="module")
def context():
    model = small_network()
    return model, context_of(model)


def test_clients_get_the_filters_of_largest_l1_norm(context):
    model, context = context
    method = create_method("fedmp")
    state = begin(model, method, context)
    found = 0
    for name in context.groups.names:
        layers = next((w for w in WRITERS.values() if f"{name}.weight" in w), None)
        if layers is None:
            continue
        found += 1
        norms = sum(state.weights[layer].abs().flatten(1).sum(1) for layer in layers)
        for client in context.clients:
            kept = method.plan(context, state, client).kept[name]
            expected = norms.argsort(descending=True)[: round((1 - client.ratio) * len(norms))]
            assert kept == tuple(sorted(expected.tolist()))
    assert found == len(WRITERS)


def test_recovered_models_count_all_the_same(context):
    model, context = context
    method = create_method("fedmp")
    state = begin(model, method, context)
    updates, after = one_round(context, method, state)
    for name, before in state.weights.items():
        recovered = []
        for update in updates:
            residual = before.double() * ~held(update, name)
            recovered.append(residual + dense(update, name, torch.zeros_like(before)).double())
        expected = sum(recovered) / len(recovered)
        expected = expected if before.is_floating_point() else expected.round()
        torch.testing.assert_close(after.weights[name].double(), expected, rtol=1e-12, atol=1e-12)
        nobody = ~torch.stack([held(u, name) for u in updates]).any(0)
        assert torch.equal(after.weights[name][nobody], before[nobody])


def test_norms_are_those_of_the_new_weights(context):
    model, context = context
    method = create_method("fedmp")
    _, after = one_round(context, method, begin(model, method, context))
    norms = after.weights["blocks.0.first.0.weight"].abs().flatten(1).sum(1)
    torch.testing.assert_close(after.method_state.scores["blocks.0.first.0"].double(), norms, rtol=1e-6, atol=0)


def test_the_compact_model_goes_both_ways(context):
    model, context = context
    method = create_method("fedmp")
    state = begin(model, method, context)
    sizes = []
    for client in context.clients:
        task = assigned(method, context, state, client)
        sizes.append(sum(tensor.numel() for tensor in task.tensors.values()))
        assert sizes[-1] == task.index_map.kept_entries
        assert (task.values, task.known) == ({}, {})
    assert sizes[0] > sizes[1] > sizes[2]


def test_a_leaf_is_worth_its_discounted_mean_and_its_rarity():
    bandit = Bandit(((0.0, 0.4), (0.4, 0.8)), discount=0.5, finest=0.05, pulls=((0.1, 3.0), (0.5, 1.0), (0.2, 2.0)))
    counts = {(0.0, 0.4): 0.25 + 1, (0.4, 0.8): 0.5}
    means = {(0.0, 0.4): (0.25 * 3 + 2) / 1.25, (0.4, 0.8): 1.0}
    for leaf, count in counts.items():
        assert bandit.index(leaf) == pytest.approx(means[leaf] + math.sqrt(2 * math.log(1.75) / count))
    assert bandit.index((0.6, 0.7)) == math.inf


def test_a_leaf_whose_pulls_count_nothing_any_more_is_worth_a_try():
    pulls = ((0.1, 3.0), *((0.5, 1.0),) * 400)
    bandit = Bandit(((0.0, 0.4), (0.4, 0.8)), discount=0.1, finest=0.05, pulls=pulls)
    assert bandit.index((0.0, 0.4)) == math.inf
    assert bandit.draw(torch.Generator().manual_seed(0)) < 0.4


def test_draws_are_uniform_in_the_best_leaf():
    bandit = Bandit(((0.0, 0.4), (0.4, 0.8)), discount=0.9, finest=0.05, pulls=((0.1, -9.0), (0.5, 9.0)))
    generator = torch.Generator().manual_seed(0)
    draws = [bandit.draw(generator) for _ in range(400)]
    assert 0.4 <= min(draws) < 0.41
    assert 0.79 < max(draws) < 0.8
    assert sum(draws) / 400 == pytest.approx(0.6, abs=0.02)


def test_a_leaf_is_cut_at_a_pull_while_it_is_wide():
    bandit = Bandit(((0.0, 0.8),), discount=0.9, finest=0.31).learn(0.5, 1.0)
    assert bandit.leaves == ((0.0, 0.5), (0.5, 0.8))
    assert bandit.learn(0.7, 1.0).leaves == ((0.0, 0.5), (0.5, 0.8))
    assert bandit.learn(0.2, 1.0).leaves == ((0.0, 0.2), (0.2, 0.5), (0.5, 0.8))
    assert bandit.learn(0.5, 1.0).leaves == bandit.leaves


def test_rewards_are_loss_decreases_over_distances_from_the_mean_time(context):
    model, context = context
    method = create_method("fedmp", bandit=True)
    state, seen = begin(model, method, context), []
    for losses, times in (((2.0, 1.5, 1.0), (4.0, 4.0, 4.0)), ((1.0, 1.4, 1.1), (2.0, 4.0, 3.0))):
        collector = method.collect(context, state)
        for client, loss, seconds in zip(context.clients, losses, times, strict=True):
            task = assigned(method, context, state, client)
            update = update_of(client, task, dict(task.tensors))
            reply = dataclasses.replace(update.reply, loss=loss)
            collector.add(dataclasses.replace(update, reply=reply, seconds=Seconds(1.0, seconds - 1, 0.0)))
            seen.append(method.drawn(context, state, client))
        state = collector.finish()
    workers = state.method_state.workers
    assert [workers[i].loss for i in range(3)] == [1.0, 1.4, 1.1]
    rewards = [1.0 / (1 / 3), 0.1 / (1 / 3), -0.1 / 0.01]
    for index, reward in enumerate(rewards):
        ((ratio, found),) = workers[index].bandit.pulls
        assert ratio == seen[3 + index]
        assert found == pytest.approx(reward)


def test_a_reward_belongs_to_the_interval_that_its_ratio_was_drawn_from(context):
    model, context = context
    method = create_method("fedmp", bandit=True, most=0.55)
    state = begin(model, method, context)
    for round in range(12):
        state = dataclasses.replace(state, round=round)
        leaves = {index: worker.bandit.leaves for index, worker in state.method_state.workers.items()}
        collector = method.collect(context, state)
        for client in context.clients:
            task = assigned(method, context, state, client)
            collector.add(update_of(client, task, dict(task.tensors)))
        before, state = state, collector.finish()
        for client in context.clients if round else ():
            ratio, _ = state.method_state.workers[client.index].bandit.pulls[-1]
            bandit = before.method_state.workers[client.index].bandit
            low, high = max(leaves[client.index], key=bandit.index)
            assert low <= ratio < high


def test_the_reward_of_a_late_update_belongs_to_its_own_ratio_and_to_some_interval(context):
    model, context = context
    method = create_method("fedmp", bandit=True, most=0.55)
    state, client = begin(model, method, context), context.clients[0]
    for plan in (context.groups.plan({}), keep_best(context.groups, 0.6, state.method_state.scores)):
        task = dataclasses.replace(assigned(method, context, state, client), plan=plan)
        earned = method.earned(context, state, Update(client, task, None, 1.0))
        assert earned == pytest.approx(min(plan.ratio, 0.55))
        assert earned < 0.55


def test_a_bandit_draws_other_ratios_for_rounds_and_workers_and_stays_below_the_most(context):
    model, context = context
    method = create_method("fedmp", bandit=True, most=0.6)
    state = begin(model, method, context)
    ratios = {
        method.plan(context, dataclasses.replace(state, round=round), client).ratio
        for round in range(10)
        for client in context.clients
    }
    assert len(ratios) > 10
    assert max(ratios) < 0.65


def test_a_bandit_prefers_ratios_that_pay():
    bandit, generator = Bandit(((0.0, 0.8),), discount=0.95, finest=0.05), torch.Generator().manual_seed(0)
    drawn = []
    for _ in range(150):
        ratio = bandit.draw(generator)
        bandit = bandit.learn(ratio, 100 - 200 * abs(ratio - 0.3))
        drawn.append(ratio)
    assert sum(abs(ratio - 0.3) < 0.1 for ratio in drawn[-50:]) > 30


def test_a_most_that_empties_a_layer_is_refused(context):
    _, context = context
    with pytest.raises(InputError, match="removing 0.98 of the .* channels of .* leaves none"):
        create_method("fedmp", bandit=True, most=0.98).check(context)
    weak = dataclasses.replace(context, clients=(Client(0, 5, 0.98),))
    with pytest.raises(InputError, match="leaves none"):
        create_method("fedmp").check(weak)
    create_method("fedmp", bandit=True).check(weak)
