"""PruneFL: reconfiguration, masked training, what crosses the wire and when."""

import dataclasses

import pytest
import torch
from federated import SAMPLES, assigned, begin, collected, context_of, local_of, shaken, small_network, update_of
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from hfp.costs.macs import macs_per_weight
from hfp.methods import ServerState, create_method
from hfp.methods.blocks import sparse
from hfp.methods.blocks.reconfigure import reconfigure
from hfp.methods.prunefl import ACTIVE, SQUARES, PruneFLState
from hfp.reconstruct import IndexMap, compact_model


@pytest.fixture(scope="module")
def context():
    model = small_network()
    return model, context_of(model)


def naive_reconfigure(weights, squares, active, times, overhead, share, most):
    """The definition, one weight at a time."""
    kept, candidates = set(), []
    for name, weight in weights.items():
        inside = [i for i in range(len(weight)) if active[name][i]]
        up = set(sorted(inside, key=lambda i: abs(weight[i]))[: int(share * len(inside))])
        kept |= {(name, i) for i in inside if i not in up}
        candidates += [(name, i) for i in range(len(weight)) if i in up or not active[name][i]]
    gain = sum(squares[name][i] for name, i in kept)
    time = overhead + sum(times[name] for name, _ in kept)
    for name, i in sorted(candidates, key=lambda where: -squares[where[0]][where[1]] / times[where[0]]):
        if len(kept) >= most or squares[name][i] / times[name] <= gain / time:
            break
        kept.add((name, i))
        gain, time = gain + squares[name][i], time + times[name]
    return {name: [(name, i) in kept for i in range(len(weight))] for name, weight in weights.items()}


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_reconfiguration_is_its_definition(data):
    sizes = data.draw(st.lists(st.integers(1, 12), min_size=1, max_size=3))
    random = torch.Generator().manual_seed(data.draw(st.integers(0, 10_000)))
    weights = {f"w{k}": torch.randn(size, generator=random, dtype=torch.float64) for k, size in enumerate(sizes)}
    squares = {name: torch.rand(len(w), generator=random, dtype=torch.float64) ** 4 for name, w in weights.items()}
    active = {name: torch.rand(len(w), generator=random) < 0.6 for name, w in weights.items()}
    times = {name: data.draw(st.sampled_from([1, 4, 9])) for name in weights}
    overhead, share = data.draw(st.floats(0.1, 50)), data.draw(st.sampled_from([0.0, 0.3, 0.5, 1.0]))
    most = data.draw(st.integers(0, sum(sizes)))
    found = reconfigure(weights, squares, active, times, overhead=overhead, share=share, most=most)
    plain = ({name: value.tolist() for name, value in tensors.items()} for tensors in (weights, squares, active))
    expected = naive_reconfigure(*plain, times, overhead, share, most)
    assert {name: mask.tolist() for name, mask in found.items()} == expected


def test_masks_survive_the_wire():
    model = small_network()
    masks = {n: torch.rand(m.shape, generator=torch.Generator().manual_seed(1)) < 0.4
             for n, m in sparse.full_masks(model).items()}  # fmt: skip
    bits = sparse.masks_to_bits(masks)
    assert bits.numel() == (sum(mask.numel() for mask in masks.values()) + 7) // 8
    again = sparse.masks_from_bits(bits, model)
    assert all(torch.equal(again[name], mask) for name, mask in masks.items())
    state = sparse.cleared(model.state_dict(), masks)
    values = sparse.gather(state, masks)
    assert all(values[name].numel() == int(mask.sum()) for name, mask in masks.items())
    back = sparse.scatter(values, masks, model)
    assert all(torch.equal(back[name], tensor) for name, tensor in state.items())


def masked_state(model, method, context, round, holders=frozenset()):
    """A server that has a mask of three weights in ten."""
    random = torch.Generator().manual_seed(5)
    state = begin(model, method, context)
    masks = {name: torch.rand(m.shape, generator=random) < 0.3 for name, m in sparse.full_masks(model).items()}
    method_state = PruneFLState(state.method_state.uses, masks, frozenset(holders))
    return ServerState(round, sparse.cleared(state.weights, masks), method_state)


def test_the_mask_goes_to_those_who_lack_it_and_values_to_all(context):
    model, context = context
    method = create_method("prunefl", every=5)
    state = masked_state(model, method, context, round=3, holders={0})
    has, lacks = (assigned(method, context, state, client) for client in context.clients[:2])
    active = sum(int(mask.sum()) for mask in state.method_state.masks.values())
    rest = sum(t.numel() for name, t in state.weights.items() if name not in state.method_state.masks)
    assert sum(tensor.numel() for tensor in has.tensors.values()) == active + rest
    assert ACTIVE not in has.tensors
    assert torch.equal(lacks.tensors[ACTIVE], has.known[ACTIVE])
    assert lacks.tensors.keys() - has.tensors.keys() == {ACTIVE}


@pytest.mark.parametrize(("round", "measured"), [(3, False), (5, True)])
def test_clients_train_active_weights_alone_and_measure_all_when_it_is_time(context, round, measured):
    model, context = context
    method, client = create_method("prunefl", every=5), context.clients[0]
    state = masked_state(model, method, context, round)
    task = assigned(method, context, state, client)
    reply = method.train(local_of(model, context, client, round=round), task)

    local, masks = local_of(model, context, client, round=round), state.method_state.masks
    reference = compact_model(model, IndexMap.identity(model), state.weights).train()
    means = {name: torch.zeros(mask.shape, dtype=torch.float64) for name, mask in masks.items()}
    for chosen in local.schedule():
        loss = functional.cross_entropy(reference(local.data.images[chosen]), local.data.labels[chosen])
        named = dict(reference.named_parameters())
        for (name, parameter), gradient in zip(
            named.items(), torch.autograd.grad(loss, list(named.values())), strict=True
        ):
            if name in masks:
                means[name] += gradient / 4
            with torch.no_grad():
                parameter -= 0.1 * gradient * masks.get(name, 1)
    for name, tensor in reference.state_dict().items():
        sent = tensor[masks[name]] if name in masks else tensor
        torch.testing.assert_close(reply.tensors[name], sent, rtol=1e-9, atol=1e-11)
    assert {name for name in reply.tensors if name.startswith(SQUARES)} == (
        {SQUARES + name for name in masks} if measured else set()
    )
    for name, mean in means.items() if measured else ():
        torch.testing.assert_close(reply.tensors[SQUARES + name].double(), mean.square(), rtol=1e-5, atol=1e-12)


def test_costs_are_those_of_active_weights(context):
    model, context = context
    method, client = create_method("prunefl", every=5), context.clients[0]
    state = masked_state(model, method, context, round=3)
    reply = method.train(local_of(model, context, client), assigned(method, context, state, client))
    masks, uses = state.method_state.masks, macs_per_weight(model, context.example)
    assert reply.forward_macs == sum(uses[name] * int(mask.sum()) for name, mask in masks.items())
    assert reply.training_macs == 3 * 16 * reply.forward_macs
    dense = sum(p.numel() for name, p in model.named_parameters() if name not in masks)
    assert reply.parameters == dense + sum(int(mask.sum()) for mask in masks.values())


def test_the_server_averages_active_weights_and_keeps_the_others_at_zero(context):
    model, context = context
    method = create_method("prunefl", every=5)
    state = masked_state(model, method, context, round=3, holders={2})
    random, updates = torch.Generator().manual_seed(0), []
    for client in context.clients[:2]:
        task = assigned(method, context, state, client)
        tensors = {name: tensor for name, tensor in task.tensors.items() if name != ACTIVE}
        updates.append(update_of(client, task, shaken(tensors, random)))
    after = collected(context, method, state, updates)
    for name, before in state.weights.items():
        mean = sum(u.client.samples / 80 * u.reply.tensors[name].double() for u in updates)
        expected = mean if before.is_floating_point() else mean.round()
        if name in state.method_state.masks:
            expected = torch.zeros_like(before).masked_scatter(state.method_state.masks[name], mean)
        torch.testing.assert_close(after.weights[name].double(), expected.double(), rtol=1e-12, atol=1e-12)
    assert after.method_state.holders == {0, 1, 2}
    assert after.method_state.masks == state.method_state.masks


def test_measured_squares_turn_the_mask(context):
    model, context = context
    method = create_method("prunefl", every=5, density=0.4, halving=10.0)
    state = masked_state(model, method, context, round=5, holders={0, 1, 2})
    random, updates = torch.Generator().manual_seed(0), []
    for client in context.clients:
        task = assigned(method, context, state, client)
        squares = {
            SQUARES + name: torch.rand(m.shape, generator=random) for name, m in state.method_state.masks.items()
        }
        updates.append(update_of(client, task, {**shaken(dict(task.tensors), random), **squares}))
    after = collected(context, method, state, updates)
    masks, uses = state.method_state.masks, state.method_state.uses
    squares = {
        name: sum(u.client.samples / SAMPLES * u.reply.tensors[SQUARES + name] for u in updates) for name in masks
    }
    values = {
        name: torch.zeros(mask.shape, dtype=torch.float64).masked_scatter(
            mask, sum(u.client.samples / SAMPLES * u.reply.tensors[name] for u in updates)
        )
        for name, mask in masks.items()
    }
    total = sum(mask.numel() for mask in masks.values())
    expected = reconfigure(
        values, squares, masks, uses, share=0.3 * 0.5**0.5, most=round(0.4 * total),
        overhead=sum(uses[name] * mask.numel() for name, mask in masks.items()),
    )  # fmt: skip
    for name, mask in expected.items():
        assert torch.equal(after.method_state.masks[name], mask)
        assert torch.equal(after.weights[name] != 0, mask & masks[name])
    assert after.method_state.holders == frozenset()
    assert sparse.count(after.method_state.masks) == round(0.4 * total)


def test_one_client_finds_the_first_mask(context):
    model, context = context
    method = create_method("prunefl", passes=6, density=0.2, limit=9, overhead=100.0)
    state = begin(model, method, context)
    assert method.phase(state) == "initial"
    (chosen,) = method.select(context, state, context.clients)
    assert chosen.samples == 50
    task = assigned(method, context, state, chosen)
    reply = method.train(local_of(model, context, chosen), task)
    after = collected(context, method, state, [update_of(chosen, task, dict(reply.tensors))])
    masks = after.method_state.masks
    assert sparse.count(masks) == round(0.2 * sparse.count(sparse.full_masks(model)))
    assert reply.steps % 6 == 0
    assert reply.steps == 6 * 5  # of ten weights 7, 4.9, 3.4, 2.4 are protected, and then 2 at most are left
    assert all(not after.weights[name][~mask].any() for name, mask in masks.items())
    assert after.method_state.holders == {1}
    assert [method.phase(dataclasses.replace(after, round=r)) for r in (1, 49, 50)] == ["train", "train", "adapt"]
    assert list(method.select(context, after, context.clients)) == list(context.clients)


def test_by_default_as_many_weights_are_active_as_submodels_would_hold(context):
    model, context = context
    total = sparse.count(sparse.full_masks(model))
    mean = (0.75**2 + 0.5**2 + 0.25**2) / 3
    assert create_method("prunefl").most(context) == round(mean * total)
    assert create_method("prunefl", density=0.5).most(context) == round(0.5 * total)
