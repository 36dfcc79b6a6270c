"""DapperFL: dense training, real fusion, pruning at the client, recovery at the server."""

import dataclasses

import pytest
import torch
from federated import SAMPLES, assigned, begin, collected, context_of, local_of, shaken, small_network, update_of
from torch.nn import functional

from hfp.errors import InputError
from hfp.methods import create_method
from hfp.methods.blocks.filters import filter_scores
from hfp.methods.blocks.selection import keep_best, keep_random
from hfp.methods.dapperfl import KEPT, kept_bits, kept_plan
from hfp.reconstruct import IndexMap, MapError, compact_model


@pytest.fixture(scope="module")
def context():
    model = small_network()
    return model, context_of(model)


def steps(model, local, batches, gamma):
    """Plain SGD at rate 0.1 on cross-entropy and the mean length of the features."""
    model.train()
    for chosen in batches:
        images, labels = local.data.images[chosen], local.data.labels[chosen]
        features = model.pool(model.blocks(functional.relu(model.stem(images)))).flatten(1)
        loss = functional.cross_entropy(model.classifier(features), labels)
        loss = loss + gamma * features.square().sum(1).sqrt().mean()
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                parameter -= 0.1 * gradient
    return model


def test_fusion_begins_in_the_second_round_or_at_once_or_never(context):
    model, context = context
    shares = {}
    for fusion in ("later", "always", "never"):
        method = create_method("dapperfl", fusion=fusion)
        state = begin(model, method, context)
        states = [type(state)(round, state.weights) for round in range(3)]
        shares[fusion] = [assigned(method, context, one, context.clients[0]).values["share"] for one in states]
    assert create_method("dapperfl").fusion == "later"
    assert shares["later"] == pytest.approx([0, 0.72, 0.576])
    assert shares["always"] == pytest.approx([0.9, 0.72, 0.576])
    assert shares["never"] == [0, 0, 0]


@pytest.mark.parametrize(("round", "share"), [(0, 0.9), (2, 0.9 * 0.64), (40, 0.1)])
@pytest.mark.parametrize(("epochs", "halves", "dense_steps"), [(1, True, 2), (1, False, 4), (3, False, 4)])
def test_a_client_trains_fuses_prunes_and_trains_on(context, round, share, epochs, halves, dense_steps):
    model, context = context
    method = create_method("dapperfl", regularisation=0.05, fusion="always", halves=halves)
    client = context.clients[1]
    state = begin(model, method, context)
    state = type(state)(round, state.weights)
    task = assigned(method, context, state, client)
    assert task.values["share"] == pytest.approx(share)
    local = local_of(model, context, client, round=round, epochs=epochs)
    reply = method.train(local_of(model, context, client, round=round, epochs=epochs), task)

    schedule = local.schedule()
    full = steps(compact_model(model, IndexMap.identity(model), state.weights), local, schedule[:dense_steps], 0.05)
    fused = {
        name: share * state.weights[name] + (1 - share) * tensor if tensor.is_floating_point() else tensor
        for name, tensor in full.state_dict().items()
    }
    plan = keep_best(context.groups, client.ratio, filter_scores(context.groups, context.model, fused))
    index_map = context.groups.index_map(plan)
    small = compact_model(model, index_map, index_map.restrict(fused))
    expected = steps(small, local, schedule[dense_steps:], 0.05).state_dict()
    assert kept_plan(context.groups, reply.tensors[KEPT]) == plan
    for name, tensor in expected.items():
        torch.testing.assert_close(reply.tensors[name], tensor, rtol=1e-9, atol=1e-11)
    assert reply.steps == 4 * epochs
    passes = dense_steps * local.count(full) + (4 * epochs - dense_steps) * local.count(small)
    assert reply.training_macs == 3 * 4 * passes


def test_the_full_model_goes_down_and_the_compact_one_comes_up(context):
    model, context = context
    method = create_method("dapperfl")
    state = begin(model, method, context)
    for client in context.clients:
        task = assigned(method, context, state, client)
        assert {n: t.shape for n, t in task.tensors.items()} == {n: t.shape for n, t in state.weights.items()}
        reply = method.train(local_of(model, context, client), task)
        index_map = context.groups.index_map(kept_plan(context.groups, reply.tensors[KEPT]))
        values = sum(tensor.numel() for name, tensor in reply.tensors.items() if name != KEPT)
        assert values == index_map.kept_entries < index_map.full_entries
        assert reply.tensors[KEPT].numel() == (sum(context.groups.sizes.values()) + 7) // 8


def test_what_clients_pruned_counts_as_unchanged(context):
    model, context = context
    method = create_method("dapperfl")
    state, random = begin(model, method, context), torch.Generator().manual_seed(3)
    updates, fulls = [], []
    for client in context.clients:
        plan = keep_random(context.groups, client.ratio, random)
        index_map = context.groups.index_map(plan)
        tensors = shaken(index_map.restrict(state.weights), random)
        fulls.append(index_map.embed(tensors, into=state.weights))
        task = assigned(method, context, state, client)
        updates.append(update_of(client, task, {**tensors, KEPT: kept_bits(plan)}))
    after = collected(context, method, state, updates)
    for name in state.weights:
        shares = [client.samples / SAMPLES for client in context.clients]
        expected = sum(share * full[name].double() for share, full in zip(shares, fulls, strict=True))
        expected = expected if state.weights[name].is_floating_point() else expected.round()
        torch.testing.assert_close(after.weights[name].double(), expected, rtol=1e-12, atol=1e-12)


def test_kept_channels_survive_the_wire_and_an_empty_group_is_refused(context):
    _, context = context
    plan = keep_random(context.groups, 0.5, torch.Generator().manual_seed(0))
    assert kept_plan(context.groups, kept_bits(plan)) == plan
    with pytest.raises(MapError, match="no channel is kept; keep at least one of"):
        kept_plan(context.groups, torch.zeros_like(kept_bits(plan)))


def test_ratios_that_empty_a_layer_are_refused(context):
    _, context = context
    clients = (type(context.clients[0])(0, 10, 0.97),)
    with pytest.raises(InputError, match="leaves none; use a smaller ratio"):
        create_method("dapperfl").check(dataclasses.replace(context, clients=clients))
