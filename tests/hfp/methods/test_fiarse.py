"""FIARSE: which channels or weights a client keeps, how their gradients count, and the mean of what was trained."""

import dataclasses

import pytest
import torch
from federated import assigned, begin, collected, context_of, held, local_of, made_up, shaken, small_network, update_of
from torch import nn
from torch.nn import functional

from hfp.errors import InputError
from hfp.methods import create_method
from hfp.methods.blocks import sparse
from hfp.methods.blocks.magnitude import FilterRows, push_factor
from hfp.methods.fiarse import ACTIVE, largest_weights
from hfp.reconstruct import Coupling, IndexMap, compact_model


@pytest.fixture(scope="module")
def context():
    model = small_network()
    return model, context_of(model)


class Chain(nn.Module):
    """Two layers that share a coupled group through a sum, one of its own, and a classifier."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Conv2d(1, 4, 1, bias=False), nn.Conv2d(1, 4, 1, bias=False)
        self.inner = nn.Conv2d(4, 6, 1)
        self.classifier = nn.Linear(6, 3)

    def forward(self, x):
        x = torch.relu(self.left(x) + self.right(x))
        return self.classifier(torch.relu(self.inner(x)).mean((2, 3)))

    def get_classifier(self):
        return self.classifier


def chain():
    torch.manual_seed(1)
    model = Chain().double()
    return model, context_of(model, shape=(1, 3, 3))


def test_a_channels_norm_is_over_all_filters_of_its_group():
    model, context = chain()
    rows = FilterRows.of(context.groups, model)
    norms = rows.by_group(rows.norms(model.state_dict()))
    shared = (model.left.weight.square().sum((1, 2, 3)) + model.right.weight.square().sum((1, 2, 3))).sqrt()
    own = model.inner.weight.square().sum((1, 2, 3)).sqrt()
    found = {len(values): values for values in norms.values()}
    torch.testing.assert_close(found[4], shared.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(found[6], own.detach(), rtol=1e-12, atol=0)


def test_channels_of_a_transposed_or_grouped_convolution_are_found():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 1), nn.ConvTranspose2d(8, 6, 1), nn.Conv2d(6, 6, 1, groups=3), nn.Flatten(),
                          nn.Linear(6 * 9, 2)).double()  # fmt: skip
    groups = Coupling.trace(model, torch.zeros(2, 1, 3, 3, dtype=torch.float64), [model[4]])
    rows = FilterRows.of(groups, model)
    norms = rows.by_group(rows.norms(model.state_dict()))
    assert sorted(map(len, norms.values())) == sorted(groups.sizes.values())
    for name, values in norms.items():
        assert (values > 0).all(), name


def test_a_transposed_convolution_of_several_groups_is_refused():
    model = nn.Sequential(nn.ConvTranspose2d(8, 6, 1, groups=2), nn.Flatten(), nn.Linear(6 * 9, 2))
    model.get_classifier = lambda: model[2]
    with pytest.raises(InputError, match=r"fiarse can't keep channels of 0, a transposed convolution of 2 groups"):
        create_method("fiarse").check(context_of(model, shape=(8, 3, 3)))


def test_a_client_keeps_the_largest_channels_of_each_group(context):
    model, context = context
    method = create_method("fiarse")
    state = begin(model, method, context)
    rows = FilterRows.of(context.groups, model)
    norms = rows.by_group(rows.norms(state.weights))
    for client in context.clients:
        plan = method.plan(context, state, client)
        for name, size in context.groups.sizes.items():
            kept = torch.zeros(size, dtype=torch.bool)
            kept[list(plan.kept[name])] = True
            assert int(kept.sum()) == round((1 - client.ratio) * size)
            assert norms[name][kept].min() >= norms[name][~kept].max()


@pytest.mark.parametrize(("which", "frozen"), [(0, False), (2, False), (0, True)])
def test_the_part_of_a_gradient_along_a_channel_counts_more_near_the_threshold(which, frozen):
    """The definition: each channel's filters as one vector, one channel at a time; frozen filters have no gradient."""
    model, context = chain()
    model.right.requires_grad_(not frozen)
    method, client = create_method("fiarse"), context.clients[which]
    state = begin(model, method, context)
    task = assigned(method, context, state, client)
    local = local_of(model, context, client, classes=(0, 1, 2))
    reply = method.train(local_of(model, context, client, classes=(0, 1, 2)), task)

    reference = compact_model(model, task.index_map, task.tensors).train()
    groups = [[reference.left.weight, reference.right.weight], [reference.inner.weight]]
    norms = [torch.cat([w.flatten(1) for w in weights], 1).norm(dim=1).detach() for weights in groups]
    thresholds = [norm.min() for norm in norms]
    for chosen in local.schedule():
        reference.zero_grad()
        functional.cross_entropy(reference(local.data.images[chosen]), local.data.labels[chosen]).backward()
        for weights, threshold in zip(groups, thresholds, strict=True):
            for channel in range(len(weights[0])):
                vector = torch.cat([w[channel].reshape(-1) for w in weights]).detach()
                parts = [w[channel] * 0 if w.grad is None else w.grad[channel] for w in weights]
                gradient = torch.cat([part.reshape(-1) for part in parts])
                n = vector.norm()
                unit = vector / n
                radial = (gradient @ unit) * unit
                gradient = gradient - radial + (1 + 2 * threshold * n / (n + threshold) ** 2) * radial
                for w, part in zip(weights, gradient.split([w[channel].numel() for w in weights]), strict=True):
                    if w.grad is not None:
                        w.grad[channel] = part.detach().view(w[channel].shape)
        with torch.no_grad():
            for parameter in reference.parameters():
                if parameter.grad is not None:
                    parameter -= 0.1 * parameter.grad
    for name, tensor in reference.state_dict().items():
        torch.testing.assert_close(reply.tensors[name], tensor, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_single_weights_are_the_largest_of_the_whole_network(context, share):
    model, context = context
    masks = largest_weights(model.state_dict(), sparse.full_masks(model), share)
    kept = torch.cat([model.state_dict()[name].abs()[mask] for name, mask in masks.items()])
    rest = torch.cat([model.state_dict()[name].abs()[~mask] for name, mask in masks.items()])
    assert len(kept) == round(share * (len(kept) + len(rest)))
    assert not len(rest) or kept.min() >= rest.max()


def test_a_kept_weights_gradient_counts_more_near_the_threshold(context):
    model, context = context
    method, client = create_method("fiarse", structured=False), context.clients[1]
    state = begin(model, method, context)
    task = assigned(method, context, state, client)
    masks = largest_weights(state.weights, sparse.full_masks(model), 0.25)
    assert torch.equal(task.tensors[ACTIVE], sparse.masks_to_bits(masks))
    local, reply = local_of(model, context, client), method.train(local_of(model, context, client), task)
    reference = compact_model(model, IndexMap.identity(model), sparse.cleared(state.weights, masks)).train()
    threshold = min(float(state.weights[name].abs()[mask].min()) for name, mask in masks.items() if mask.any())
    for chosen in local.schedule():
        named = dict(reference.named_parameters())
        loss = functional.cross_entropy(reference(local.data.images[chosen]), local.data.labels[chosen])
        gradients = torch.autograd.grad(loss, list(named.values()))
        with torch.no_grad():
            for (name, w), gradient in zip(named.items(), gradients, strict=True):
                push = 1 + 2 * threshold * w.abs() / (w.abs() + threshold) ** 2
                w -= 0.1 * gradient * (push * masks[name] if name in masks else 1)
    for name, tensor in reference.state_dict().items():
        sent = tensor[masks[name]] if name in masks else tensor
        torch.testing.assert_close(reply.tensors[name], sent, rtol=1e-7, atol=1e-9)
    kept = sum(int(mask.sum()) for mask in masks.values())
    biases = sum(p.numel() for name, p in model.named_parameters() if name not in masks)
    assert reply.parameters == kept + biases


def test_a_push_is_half_as_much_again_at_the_threshold_and_none_far_off():
    found = push_factor(torch.tensor([0.0, 0.5, 1e6, 2.0]), torch.tensor(0.5))
    torch.testing.assert_close(found, torch.tensor([1.0, 1.5, 1.0, 1 + 2 * 0.5 * 2 / 2.5**2]), rtol=1e-5, atol=1e-5)
    assert float(push_factor(torch.zeros(()), torch.zeros(()))) == 1


@pytest.mark.parametrize("rate", [1.0, 0.5])
def test_entries_move_by_the_plain_mean_of_the_clients_that_trained_them(context, rate):
    model, context = context
    method = create_method("fiarse", server_rate=rate)
    state = begin(model, method, context)
    updates = list(made_up(context, method, state))
    after = collected(context, method, state, updates)
    for name in context.parameters:
        before = state.weights[name]
        moved, count = torch.zeros_like(before), torch.zeros_like(before)
        for update in updates:
            mask = held(update, name)
            moved[mask] += update.reply.tensors[name].reshape(-1) - before[mask]
            count += mask
        expected = before + rate * moved / count.clamp(min=1)
        torch.testing.assert_close(after.weights[name], expected, rtol=1e-10, atol=1e-12)


def sparse_updates(model, context, method, state):
    random = torch.Generator().manual_seed(2)
    for client in context.clients:
        task = assigned(method, context, state, client)
        tensors = {name: value for name, value in task.tensors.items() if name != ACTIVE}
        yield update_of(client, task, shaken(tensors, random))


def test_single_weights_move_by_the_plain_mean_of_the_clients_that_kept_them(context):
    model, context = context
    method = create_method("fiarse", structured=False)
    state = begin(model, method, context)
    updates = list(sparse_updates(model, context, method, state))
    after = collected(context, method, state, updates)
    for name, before in state.weights.items():
        moved, count = torch.zeros_like(before).double(), torch.zeros_like(before).double()
        for update in updates:
            mask = sparse.masks_from_bits(update.task.tensors[ACTIVE], model).get(name, torch.ones(before.shape) > 0)
            moved[mask] += update.reply.tensors[name].reshape(-1).double() - before[mask]
            count += mask
        expected = before + moved / count.clamp(min=1)
        expected = expected if before.is_floating_point() else expected.round()
        torch.testing.assert_close(after.weights[name].double(), expected, rtol=1e-10, atol=1e-12)


def test_a_late_change_of_single_weights_is_made_to_the_weights_of_today(context):
    model, context = context
    method = create_method("fiarse", structured=False)
    state = begin(model, method, context)
    update, *_ = sparse_updates(model, context, method, state)
    later = dataclasses.replace(
        state, weights={n: t + 1 if t.is_floating_point() else t for n, t in state.weights.items()}
    )
    rebased = method.rebase(context, later, update)
    for name, tensor in update.reply.tensors.items():
        expected = tensor + 1 if tensor.is_floating_point() else tensor
        expected = expected.clamp(min=0) if name.endswith("running_var") else expected
        torch.testing.assert_close(rebased.reply.tensors[name], expected, rtol=1e-9, atol=1e-9)
    method.check_reply(context, later, rebased)


def test_a_late_change_of_single_weights_leaves_no_variance_below_zero_and_takes_nothing_else(context):
    model, context = context
    method = create_method("fiarse", structured=False)
    then, client = begin(model, method, context), context.clients[1]
    task = assigned(method, context, then, client)
    values = {name: tensor for name, tensor in task.tensors.items() if name != ACTIVE}
    less = {name: tensor * 0.1 if name.endswith("running_var") else tensor for name, tensor in values.items()}
    small = {name: tensor * 0.2 if name.endswith("running_var") else tensor for name, tensor in then.weights.items()}
    update = update_of(client, task, {**less, ACTIVE: torch.ones(3)})
    rebased = method.rebase(context, dataclasses.replace(then, round=3, weights=small), update)
    found = [tensor for name, tensor in rebased.reply.tensors.items() if name.endswith("running_var")]
    assert found
    assert all(torch.equal(tensor, torch.zeros_like(tensor)) for tensor in found)
