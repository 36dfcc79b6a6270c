"""HeteroFL, FedRolex and FjORD: which channels, scaled and masked local losses, means over holders."""

import copy
import dataclasses
import math

import pytest
import torch
from federated import (
    assigned,
    begin,
    collected,
    context_of,
    held,
    local_of,
    made_up,
    one_round,
    small_network,
)
from torch import nn
from torch.func import functional_call
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm

from hfp.methods import Client, create_method
from hfp.methods.blocks.selection import keep_window
from hfp.methods.fjord import relative
from hfp.methods.heterofl import CLASSES, MaskedCrossEntropy, scale_outputs
from hfp.reconstruct import Coupling, compact_model


@pytest.fixture(scope="module")
def context():
    model = small_network()
    return model, context_of(model)


def test_heterofl_and_fjord_train_the_first_channels(context):
    model, context = context
    for name in ("heterofl", "fjord"):
        method = create_method(name)
        state = dataclasses.replace(begin(model, method, context), round=7)
        for client in context.clients:
            for group, kept in method.plan(context, state, client).kept.items():
                assert kept == tuple(range(math.ceil((1 - client.ratio) * context.groups.sizes[group])))


def test_fedrolex_rolls_on_by_one_channel_a_round(context):
    model, context = context
    method = create_method("fedrolex")
    state = begin(model, method, context)
    for round in (0, 3, 9):
        now = dataclasses.replace(state, round=round)
        for client in context.clients:
            for group, kept in method.plan(context, now, client).kept.items():
                size = context.groups.sizes[group]
                width = math.ceil((1 - client.ratio) * size)
                assert set(kept) == {(round + i) % size for i in range(width)}


def test_fedrolex_trains_every_channel_in_as_many_rounds_as_channels(context):
    model, context = context
    method = create_method("fedrolex")
    state, weak = begin(model, method, context), Client(0, 1, 0.9)
    for group, size in context.groups.sizes.items():
        plans = [method.plan(context, dataclasses.replace(state, round=r), weak) for r in range(size)]
        assert set().union(*(plan.kept[group] for plan in plans)) == set(range(size))


def test_fedrolex_can_go_around_every_layer_within_the_run(context):
    model, context = context
    context = dataclasses.replace(context, rounds=8)
    method = create_method("fedrolex", roll="run")
    state, weak = begin(model, method, context), Client(0, 1, 0.75)
    for group, size in context.groups.sizes.items():
        plans = [method.plan(context, dataclasses.replace(state, round=r), weak) for r in range(8)]
        for round, plan in enumerate(plans):
            assert set(plan.kept[group]) == {(round * size // 8 + i) % size for i in range(size // 4)}
        assert set().union(*(plan.kept[group] for plan in plans)) == set(range(size))


@pytest.mark.parametrize("normed", [False, True])
def test_heterofl_scales_the_outputs_of_cut_layers_while_training(normed):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3, groups=6), nn.ReLU(), nn.Conv2d(6, 8, 1), nn.Flatten(),
        nn.Linear(8, 5),
    ).double()  # fmt: skip
    if normed:
        weight_norm(model[4])
    groups = Coupling.trace(model, torch.zeros(2, 1, 5, 5, dtype=torch.float64), [model[6]])
    plan = keep_window(groups, 0.5)
    compact = compact_model(model, groups.index_map(plan))
    scale_outputs(compact, groups.index_map(plan), 2.0)
    x = torch.randn(3, 1, 5, 5, dtype=torch.float64)
    hidden = functional.relu(2 * functional.conv2d(x, model[0].weight[:3], model[0].bias[:3]))
    hidden = functional.relu(functional.conv2d(hidden, model[2].weight[:3], model[2].bias[:3], groups=3))
    hidden = 2 * functional.conv2d(hidden, compact[4].weight, model[4].bias[:4])
    expected = functional.linear(hidden.flatten(1), model[6].weight[:, :4], model[6].bias)
    torch.testing.assert_close(compact(x), expected, rtol=1e-12, atol=1e-12)


def test_heterofl_sets_the_logits_of_absent_classes_to_zero():
    logits = torch.randn(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    labels, absent = torch.tensor([1, 3, 3, 1]), torch.tensor([True, False, True, False, True])

    class Given(nn.Module):
        def forward(self, x):
            return logits

    loss = MaskedCrossEntropy(absent).loss(Given(), torch.zeros(4), labels)
    expected = 0.0
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        kept = [value if index in (1, 3) else 0.0 for index, value in enumerate(row)]
        expected -= math.log(math.exp(kept[label]) / sum(map(math.exp, kept))) / 4
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    loss.backward()
    assert torch.equal(logits.grad[:, [0, 2, 4]], torch.zeros(4, 3))
    assert logits.grad[:, [1, 3]].abs().min() > 0


def test_heterofl_leaves_the_rows_of_absent_classes_where_they_were(context):
    model, context = context
    method = create_method("heterofl")
    state, client = begin(model, method, context), context.clients[0]
    task = assigned(method, context, state, client)
    reply = method.train(local_of(model, context, client, classes=(2, 5)), task)
    assert reply.tensors[CLASSES].tolist() == [2, 5]
    absent = [c for c in range(10) if c not in (2, 5)]
    assert torch.equal(reply.tensors["classifier.weight"][absent], task.tensors["classifier.weight"][absent])
    assert not torch.equal(reply.tensors["classifier.weight"][[2, 5]], task.tensors["classifier.weight"][[2, 5]])


@pytest.mark.parametrize("name", ["heterofl", "fedrolex"])
def test_entries_are_the_plain_mean_of_the_clients_that_hold_them(context, name):
    model, context = context
    method = create_method(name)
    state = begin(model, method, context)
    owned = ([0, 1, 2], [1, 2, 3], [7])
    updates = [
        dataclasses.replace(
            update,
            reply=dataclasses.replace(update.reply, tensors={**update.reply.tensors, CLASSES: torch.tensor(own)}),
        )
        for update, own in zip(made_up(context, method, state), owned, strict=True)
    ]
    after = collected(context, method, state, updates)
    untouched = 0
    for tensor, before in state.weights.items():
        expected = before.double().clone().reshape(-1)
        total, count = torch.zeros_like(expected), torch.zeros_like(expected)
        for update, own in zip(updates, owned, strict=True):
            mask = held(update, tensor)
            value = torch.zeros(before.shape, dtype=torch.float64)
            value[mask] = update.reply.tensors[tensor].double().reshape(-1)
            if tensor.startswith("classifier"):
                mask = mask & torch.isin(torch.arange(10), torch.tensor(own)).view(-1, *[1] * (before.dim() - 1))
            total += (value * mask).reshape(-1)
            count += mask.reshape(-1)
        expected = torch.where(count > 0, total / count.clamp(min=1), expected).reshape(before.shape)
        torch.testing.assert_close(after.weights[tensor].double(), expected, rtol=1e-12, atol=1e-12)
        nobody = (count == 0).reshape(before.shape)
        assert torch.equal(after.weights[tensor][nobody], before[nobody])
        untouched += int(nobody.sum())
    assert untouched > 0


def test_fjord_averages_holders_by_samples(context):
    model, context = context
    method = create_method("fjord")
    state = begin(model, method, context)
    updates, after = one_round(context, method, state)
    for name, before in state.weights.items():
        weights = sum(u.client.samples * held(u, name).double() for u in updates)
        total = torch.zeros(before.shape, dtype=torch.float64)
        for update in updates:
            total[held(update, name)] += update.client.samples * update.reply.tensors[name].double().reshape(-1)
        expected = torch.where(weights > 0, total / weights.clamp(min=1), before.double())
        expected = expected if before.is_floating_point() else expected.round()
        torch.testing.assert_close(after.weights[name].double(), expected, rtol=1e-6, atol=1e-6)


def nested_reference(local, task, widths, distillation, temperature, learning_rate=0.1, momentum=0.9):
    """FjORD's local training, one compact network at a time; also the widths drawn."""
    groups, model = local.groups, local.model
    candidates = [*[w for w in widths if w < 1 - local.client.ratio], 1 - local.client.ratio]
    maps = [groups.index_map(keep_window(groups, 1 - width)) for width in candidates]
    full = maps[-1].embed(task.tensors, into=model.state_dict())
    networks = [compact_model(model, m, m.restrict(full)) for m in maps]
    names = [name for name, _ in model.named_parameters()]
    velocity = {name: torch.zeros_like(full[name]) for name in names}
    random, drawn = local.draws("widths"), []
    for chosen in local.schedule():
        images, labels = local.data.images[chosen], local.data.labels[chosen]
        drawn.append(int(torch.randint(len(candidates), (), generator=random)))
        used = [drawn[-1]] if drawn[-1] == len(candidates) - 1 or not distillation else [drawn[-1], len(candidates) - 1]
        scores, leaves = [], []
        for index in used:
            leaves.append({n: maps[index].tensors[n].restrict(full[n]).requires_grad_() for n in names})
            scores.append(functional_call(networks[index].train(), leaves[-1], (images,)))
        loss = functional.cross_entropy(scores[0], labels)
        if len(used) == 2:
            teacher = (scores[1].detach() / temperature).softmax(1)
            student = (scores[0] / temperature).softmax(1)
            divergence = (teacher * (teacher / student).log()).sum(1).mean()
            loss = functional.cross_entropy(scores[1], labels) + (1 - distillation) * loss
            loss = loss + distillation * temperature**2 * divergence
        gradient = {name: torch.zeros_like(full[name]) for name in names}
        flat = [leaf for leaf in leaves for leaf in leaf.values()]
        for (index, name), value in zip(
            [(i, n) for i in used for n in names], torch.autograd.grad(loss, flat), strict=True
        ):
            maps[index].tensors[name].add(value, gradient[name])
        for name in names:
            velocity[name] = momentum * velocity[name] + gradient[name]
            full[name] = full[name] - learning_rate * velocity[name]
    return maps[-1], full, networks[-1], drawn


@pytest.mark.parametrize(("distillation", "temperature"), [(0.0, 1.0), (0.4, 2.0)])
def test_fjord_trains_a_width_drawn_for_every_step(context, distillation, temperature):
    model, context = context
    method = create_method("fjord", distillation=distillation, temperature=temperature)
    client = context.clients[0]
    task = assigned(method, context, begin(model, method, context), client)
    settings = {"epochs": 3, "momentum": 0.9}
    reply = method.train(local_of(model, context, client, **settings), task)
    index_map, full, widest, drawn = nested_reference(
        local_of(model, context, client, **settings), task, method.widths, distillation, temperature
    )
    assert len(set(drawn)) == 4
    for name, tensor in reply.tensors.items():
        if name in context.parameters:
            expected = index_map.tensors[name].restrict(full[name])
        else:
            expected = widest.state_dict()[name]
        torch.testing.assert_close(tensor, expected, rtol=1e-9, atol=1e-11)


def test_fjord_trains_a_model_that_was_given_in_evaluation_mode_as_any_other(context):
    model, context = context
    method, client = create_method("fjord"), context.clients[0]
    task = assigned(method, context, begin(model, method, context), client)
    resting = copy.deepcopy(model).eval()
    replies = [method.train(local_of(one, context, client, epochs=2), task) for one in (model, resting)]
    for name, tensor in replies[0].tensors.items():
        assert torch.equal(tensor, replies[1].tensors[name])


def test_fjord_counts_the_passes_of_the_widths_it_drew(context):
    model, context = context
    client = context.clients[0]
    local = local_of(model, context, client, epochs=3)
    costs = [
        local.count(compact_model(model, context.groups.index_map(keep_window(context.groups, 1 - width))))
        for width in (0.2, 0.4, 0.6, 0.75)
    ]
    plain, taught = create_method("fjord"), create_method("fjord", distillation=0.5)
    task = assigned(plain, context, begin(model, plain, context), client)
    random = local.draws("widths")
    drawn = [int(torch.randint(4, (), generator=random)) for _ in range(12)]
    passes = sum(costs[index] for index in drawn)
    assert plain.train(local, task).training_macs == 3 * 4 * passes
    extra = sum(costs[3] for index in drawn if index < 3)
    assert taught.train(local_of(model, context, client, epochs=3), task).training_macs == 3 * 4 * (passes + extra)


def test_relative_maps_find_a_submodel_inside_a_submodel(context):
    model, context = context
    outer, inner = (context.groups.index_map(keep_window(context.groups, ratio, 2)) for ratio in (0.25, 0.6))
    state = model.state_dict()
    within = relative(outer, inner)
    for name, tensor in outer.restrict(state).items():
        assert torch.equal(within[name].restrict(tensor), inner.restrict(state)[name])
