"""FedRTS: what a round says of each weight, how masks are drawn, what crosses the wire and when."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from federated import SAMPLES, assigned, begin, collected, context_of, local_of, shaken, small_network, update_of
from torch.nn import functional

from hfp.errors import InputError
from hfp.methods import create_method
from hfp.methods.blocks import sparse
from hfp.methods.fedrts import ACTIVE, GROWN, FedRTSState, drawn, exchanged
from hfp.reconstruct import IndexMap, compact_model


@pytest.fixture(scope="module")
def context():
    model = small_network()
    return model, dataclasses.replace(context_of(model), rounds=40)


def begun(model, context, round, **options):
    method = create_method("fedrts", density=0.3, **options)
    return method, dataclasses.replace(begin(model, method, context), round=round)


def updates_of(context, method, state):
    """Made-up replies, with as many random inactive weights as a readjustment asks for."""
    random, updates = torch.Generator().manual_seed(3), []
    for client in context.clients:
        task = assigned(method, context, state, client)
        tensors = shaken({name: value for name, value in task.tensors.items() if name != ACTIVE}, random)
        if share := task.values["exchange"]:
            grown = {}
            for name, mask in state.method_state.masks.items():
                inactive = (~mask).reshape(-1).nonzero().view(-1)
                chosen = inactive[torch.randperm(len(inactive), generator=random)[: exchanged(mask, share)]]
                grown[name] = torch.zeros(mask.numel(), dtype=torch.bool)
                grown[name][chosen] = True
            tensors[GROWN] = sparse.masks_to_bits(grown)
        updates.append(update_of(client, task, tensors))
    return updates


def test_each_layer_has_its_share_of_active_weights_and_the_rest_is_zero(context):
    model, context = context
    _, state = begun(model, context, 0)
    for name, mask in state.method_state.masks.items():
        assert int(mask.sum()) == max(1, round(0.3 * mask.numel()))
        assert not state.weights[name][~mask].any()
        assert torch.equal(state.weights[name][mask], model.state_dict()[name][mask])
    by_default = begin(model, create_method("fedrts"), context)
    share = (0.75**2 + 0.5**2 + 0.25**2) / 3
    for mask in by_default.method_state.masks.values():
        assert int(mask.sum()) == max(1, round(share * mask.numel()))


@pytest.mark.parametrize("round", [7, 20])
def test_a_round_counts_for_each_weight_as_the_paper_says(context, round):
    """The definition, one weight at a time in plain Python; round 20 is a readjustment."""
    model, context = context
    method, state = begun(model, context, round, client_share=0.3, strength=2.0)
    updates = updates_of(context, method, state)
    after = collected(context, method, state, updates)
    share = 0.4 / 2 * (1 + math.cos(math.pi * round / 40))
    masks = state.method_state.masks
    locals_ = [sparse.scatter(update.reply.tensors, masks, model) for update in updates]
    named = [sparse.masks_from_bits(u.reply.tensors[GROWN], model) for u in updates] if round == 20 else []
    for name, mask in masks.items():
        flat = mask.reshape(-1).tolist()
        active = [i for i, on in enumerate(flat) if on]
        stay = len(active) - min(int(share * len(active)), len(flat) - len(active))
        weights = [client.samples / SAMPLES for client in context.clients]
        mean = sum(p * state_[name].double() for p, state_ in zip(weights, locals_, strict=True)).reshape(-1).tolist()
        best = set(sorted(active, key=lambda i: -abs(mean[i]))[:stay])
        votes = [0.0] * len(flat)
        for p, state_ in zip(weights, locals_, strict=True):
            own = state_[name].reshape(-1).tolist()
            for i in sorted(active, key=lambda i: -abs(own[i]))[:stay]:
                votes[i] += p
        for p, grown in zip(weights, named, strict=False):
            for i, on in enumerate(grown[name].reshape(-1).tolist()):
                votes[i] += p * on
        for i, on in enumerate(flat):
            o = 0.7 * (float(i in best) if on else 0.5) + 0.3 * votes[i]
            heard = on or round == 20
            kept, dropped = (
                counts[name].reshape(-1)[i] for counts in (after.method_state.kept, after.method_state.dropped)
            )
            assert float(kept) == pytest.approx(1 + heard * 2 * o, abs=1e-5)
            assert float(dropped) == pytest.approx(1 + heard * 2 * (1 - o), abs=1e-5)
    assert (after.method_state.holders == frozenset()) == (round == 20)
    for name, mask in after.method_state.masks.items():
        assert int(mask.sum()) == int(masks[name].sum())
        assert not after.weights[name][~mask].any()
        assert not after.weights[name][mask & ~masks[name]].any()
        assert torch.equal(mask, masks[name]) == (round == 7)


def test_masks_are_the_largest_draws_and_the_same_for_a_seed():
    kept, dropped = {"w": torch.tensor([50.0, 1, 1, 60, 1])}, {"w": torch.tensor([1.0, 50, 60, 1, 70])}
    for seed in range(5):
        assert drawn(kept, dropped, {"w": 2}, seed)["w"].tolist() == [True, False, False, True, False]
    even = {"w": torch.ones(8)}
    draws = {tuple(drawn(even, even, {"w": 3}, seed)["w"].tolist()) for seed in range(40)}
    assert len(draws) > 20
    assert tuple(drawn(even, even, {"w": 3}, 7)["w"].tolist()) in draws
    values = np.random.default_rng(7).beta(np.ones(8), np.ones(8))
    assert drawn(even, even, {"w": 3}, 7)["w"].nonzero().view(-1).tolist() == sorted(np.argsort(-values)[:3].tolist())


@pytest.mark.parametrize(("round", "adapts"), [(0, False), (9, False), (10, True), (15, False), (30, False)])
def test_readjustments_come_in_their_rounds_and_end(context, round, adapts):
    model, context = context
    method, state = begun(model, context, round, until=30)
    assert method.phase(state) == ("adapt" if adapts else "train")
    task = assigned(method, context, state, context.clients[0])
    assert (task.values["exchange"] > 0) == adapts


@pytest.mark.parametrize("round", [3, 20])
def test_a_client_trains_active_weights_alone_and_names_the_largest_gradients(context, round):
    model, context = context
    method, state = begun(model, context, round)
    client, masks = context.clients[0], state.method_state.masks
    task = assigned(method, context, state, client)
    reply = method.train(local_of(model, context, client, round=round), task)
    method.check_reply(context, state, update_of(client, task, dict(reply.tensors)))

    local = local_of(model, context, client, round=round)
    reference = compact_model(model, IndexMap.identity(model), state.weights).train()
    sums = {name: torch.zeros(mask.shape, dtype=torch.float64) for name, mask in masks.items()}
    for chosen in local.schedule():
        loss = functional.cross_entropy(reference(local.data.images[chosen]), local.data.labels[chosen])
        named = dict(reference.named_parameters())
        gradients = torch.autograd.grad(loss, list(named.values()))
        for (name, parameter), gradient in zip(named.items(), gradients, strict=True):
            if name in masks:
                sums[name] += gradient
            with torch.no_grad():
                parameter -= 0.1 * gradient * masks.get(name, 1)
    for name, tensor in reference.state_dict().items():
        sent = tensor[masks[name]] if name in masks else tensor
        torch.testing.assert_close(reply.tensors[name], sent, rtol=1e-9, atol=1e-11)
    assert (GROWN in reply.tensors) == (round == 20)
    for name, grown in sparse.masks_from_bits(reply.tensors[GROWN], model).items() if round == 20 else ():
        size = sums[name].abs().masked_fill(masks[name], -1)
        count = exchanged(masks[name], task.values["exchange"])
        assert int(grown.sum()) == count
        assert not (grown & masks[name]).any()
        if 0 < count < int((~masks[name]).sum()):
            assert size[grown].min() >= size[~grown & ~masks[name]].max() * (1 - 1e-4)


def test_the_mask_goes_to_those_who_lack_it(context):
    model, context = context
    method, state = begun(model, context, 3)
    state = dataclasses.replace(state, method_state=dataclasses.replace(state.method_state, holders=frozenset({0})))
    has, lacks = (assigned(method, context, state, client) for client in context.clients[:2])
    assert ACTIVE not in has.tensors
    assert torch.equal(lacks.tensors[ACTIVE], has.known[ACTIVE])
    active = sum(int(mask.sum()) for mask in state.method_state.masks.values())
    rest = sum(t.numel() for name, t in state.weights.items() if name not in state.method_state.masks)
    assert sum(tensor.numel() for tensor in has.tensors.values()) == active + rest


def test_replies_that_name_other_weights_are_refused(context):
    model, context = context
    method, state = begun(model, context, 20)
    (update, *_) = updates_of(context, method, state)
    tensors = dict(update.reply.tensors)
    for wrong, message in (
        (None, "the reply lacks weights/grown"),
        (sparse.masks_to_bits(sparse.full_masks(model)), r"must name \d+ inactive weights of stem.0.weight; found"),
        (sparse.masks_to_bits(state.method_state.masks), r"must name \d+ inactive weights"),
    ):
        changed = {name: value for name, value in tensors.items() if name != GROWN}
        changed |= {} if wrong is None else {GROWN: wrong}
        with pytest.raises(InputError, match=message):
            method.check_reply(context, state, update_of(update.client, update.task, changed))
    assert isinstance(state.method_state, FedRTSState)
