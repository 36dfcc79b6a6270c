"""CA-HFP and FedAvg against their naive definitions, in float64 and with dense masks; what holds for every method."""

import dataclasses
import json
import re

import pytest
import torch
from federated import (
    SAMPLES,
    STEP_SIZE,
    STEPS,
    assigned,
    begin,
    collected,
    context_of,
    dense,
    held,
    local_of,
    made_up,
    one_round,
    prepared,
    small_network,
)
from torch import nn
from torch.nn import functional

from hfp.errors import InputError
from hfp.methods import Client, Method, Update, create_method, methods
from hfp.methods.blocks.pseudo_gradients import PseudoGradients
from hfp.methods.blocks.selection import keep_best, keep_random, keep_window
from hfp.methods.interface.counts import keep_count
from hfp.reconstruct import Coupling, IndexMap

QUICK = {"prunefl": {"passes": 2, "limit": 2, "every": 2}}
"""Options under which a method's first rounds take no time."""


@pytest.fixture(scope="module")
def context():
    model = small_network()
    return model, context_of(model)


def test_ca_hfp_fills_with_the_global_values(context):
    model, context = context
    method = create_method("ca-hfp-paper")
    state = begin(model, method, context)
    updates, after = one_round(context, method, state)
    for name, before in state.weights.items():
        expected = sum(u.client.samples / SAMPLES * dense(u, name, before).double() for u in updates)
        torch.testing.assert_close(after.weights[name].double(), expected, rtol=1e-12, atol=1e-12)
        nobody = ~torch.stack([held(u, name) for u in updates]).any(0)
        assert torch.equal(after.weights[name][nobody], before[nobody])


def test_a_method_that_lacks_a_part_says_which(monkeypatch):
    class Half(Method):
        name = "half"

        def plan(self, context, state, client):
            raise NotImplementedError

    monkeypatch.setattr("hfp.methods.interface.registry._METHODS", {"half": Half})
    with pytest.raises(InputError, match="method half is not complete: Half must define collect"):
        create_method("half")


@pytest.mark.parametrize("shrink", [0.3, 1.0])
def test_ca_hfp_fills_with_shrunken_global_values(context, shrink):
    model, context = context
    method = create_method("ca-hfp", rule="fill", shrink=shrink)
    state = begin(model, method, context)
    updates, after = one_round(context, method, state)
    for name, before in state.weights.items():
        elsewhere = (1 - shrink) * before if name in context.parameters else before
        expected = sum(u.client.samples / SAMPLES * dense(u, name, elsewhere).double() for u in updates)
        torch.testing.assert_close(after.weights[name].double(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shrink_decays", [True, False])
def test_ca_hfp_takes_less_of_the_perturbation_off_from_round_to_round_as_clients_agree(context, shrink_decays):
    model, context = context
    plain, shrunken = (create_method("ca-hfp", shrink=shrink, shrink_decays=shrink_decays) for shrink in (0.0, 0.25))
    state, share = begin(model, plain, context), 0.25
    for _ in range(3):
        updates = [pulled(update) for update in made_up(context, shrunken, state, seed=state.round)]
        without, after = (collected(context, method, state, updates) for method in (plain, shrunken))
        if state.round == 0:
            nobody = [~torch.stack([held(u, name) for u in updates]).any(0) for name in context.parameters]
            shrink_decay = shrink_decays * agreement(context, plain, state, updates) * share_of_true(nobody)
            assert not shrink_decays or 0.1 < shrink_decay < 0.5
        assert (
            after.method_state.shrink_decay
            == without.method_state.shrink_decay
            == pytest.approx(shrink_decay, rel=1e-12)
        )
        for name in context.parameters:
            missing = sum(u.client.samples / SAMPLES * (~held(u, name)).double() for u in updates)
            expected = without.weights[name] - share * missing * state.weights[name]
            torch.testing.assert_close(after.weights[name], expected, rtol=1e-12, atol=1e-12)
        state, share = after, share * (1 - shrink_decay)


def agreement(context, method, state, updates) -> float:
    """As `PseudoGradients` has it, which has tests of its own."""
    gradients = PseudoGradients({name: state.weights[name] for name in context.parameters})
    for update in updates:
        distance = update.step_size * update.reply.steps
        gradients.add(method.trained_part(context, state, update), update.client.samples, distance)
    return gradients.agreement()


def share_of_true(masks) -> float:
    return float(torch.cat([mask.flatten() for mask in masks]).double().mean())


def pulled(update: Update) -> Update:
    """The update moved by as much again in a direction that all clients share."""
    tensors = {
        name: tensor + 1 if tensor.is_floating_point() else tensor for name, tensor in update.reply.tensors.items()
    }
    return dataclasses.replace(update, reply=dataclasses.replace(update.reply, tensors=tensors))


@pytest.mark.parametrize("name, options", [("ca-hfp", {"shrink": 0.0}), ("fedavgm", {})])
def test_momentum_keeps_a_share_of_the_last_change_moving(context, name, options):
    model, context = context
    moving, plain = (create_method(name, server_momentum=momentum, **options) for momentum in (0.5, 0.0))
    states = [begin(model, moving, context)]
    for _ in range(3):
        before, (_, after), (_, mean) = states[-1], *(one_round(context, each, states[-1]) for each in (moving, plain))
        for key in context.parameters:
            past = 0.5 * (before.weights[key] - states[-2].weights[key]) if len(states) > 1 else 0
            torch.testing.assert_close(after.weights[key], mean.weights[key] + past, rtol=1e-12, atol=1e-12)
        states.append(after)


def test_ca_hfp_leaves_the_weights_of_the_round_before_alone(context):
    model, context = context
    method = create_method("ca-hfp")
    state = begin(model, method, context)
    before = {name: tensor.clone() for name, tensor in state.weights.items()}
    one_round(context, method, state)
    assert all(torch.equal(state.weights[name], tensor) for name, tensor in before.items())


def test_ca_hfp_averages_over_holders_when_asked(context):
    model, context = context
    method = create_method("ca-hfp", rule="holders", shrink=0.0)
    state = begin(model, method, context)
    updates, after = one_round(context, method, state)
    for name in context.parameters:
        weights = sum(u.client.samples * held(u, name).double() for u in updates)
        total = sum(u.client.samples * dense(u, name, torch.zeros_like(state.weights[name])) for u in updates)
        expected = torch.where(weights > 0, total / weights, state.weights[name])
        torch.testing.assert_close(after.weights[name], expected, rtol=1e-10, atol=1e-10)


def entries_of(groups: Coupling, group: str, channel: int) -> dict[str, torch.Tensor]:
    """The entries that go when one channel goes."""
    kept = [c for c in range(groups.sizes[group]) if c != channel]
    return {name: ~mask for name, mask in groups.index_map(groups.plan({group: kept})).masks().items()}


@pytest.mark.parametrize("form", ["curvature", "paper", "taylor"])
def test_ca_hfp_scores_channels_by_their_entries(context, form):
    model, context = context
    method = create_method("ca-hfp", warmup=1, form=form)
    state = begin(model, method, context)
    updates, after = one_round(context, method, state)

    gradient, curvature = {}, {}
    for name in context.parameters:
        weights = sum(u.client.samples * held(u, name).double() for u in updates)
        zero = torch.zeros_like(state.weights[name])
        steps = [
            (u, (state.weights[name] - dense(u, name, state.weights[name])) / (STEP_SIZE * STEPS)) for u in updates
        ]
        g = sum((u.client.samples * step for u, step in steps), zero)
        h = sum((u.client.samples * step.square() for u, step in steps), zero)
        seen = weights > 0
        gradient[name] = torch.where(seen, g / weights.clamp(min=1), zero)
        curvature[name] = torch.where(seen, h / weights.clamp(min=1), (h / weights)[seen].mean())
    definition = {
        "curvature": lambda g, h, w: h * w * w,
        "paper": lambda g, h, w: g * w + h * w * w,
        "taylor": lambda g, h, w: -g * w + h * w * w / 2,
    }[form]
    for group, size in context.groups.sizes.items():
        for channel in range(0, size, 3):
            gone = entries_of(context.groups, group, channel)
            expected = sum(
                definition(gradient[n], curvature[n], after.weights[n])[gone[n]].sum() for n in context.parameters
            )
            assert after.method_state.scores[group][channel].item() == pytest.approx(expected.item(), rel=1e-6)


def test_ca_hfp_draws_other_random_masks_each_round_and_client_until_warmup_ends(context):
    model, context = context
    method = create_method("ca-hfp", warmup=2, nested=False)
    first = begin(model, method, context)
    _, second = one_round(context, method, first)
    _, third = one_round(context, method, second)
    same_ratio = (Client(5, 10, 0.5), Client(6, 10, 0.5))
    assert [method.phase(state) for state in (first, second, third)] == ["random", "random", "score"]
    maps = [[method.plan(context, state, client) for client in same_ratio] for state in (first, second, third)]
    assert maps[0][0] != maps[0][1]
    assert maps[0][0] != maps[1][0]
    assert maps[2][0] == maps[2][1]


def test_masks_are_random_until_there_is_an_estimate():
    """The secant takes the means of two rounds; before that, all channels would score alike."""
    model = small_network()
    context, method = context_of(model), create_method("ca-hfp", estimator="secant")
    state, phases = begin(model, method, context), []
    for seed in range(3):
        phases.append(method.phase(state))
        _, state = one_round(context, method, state, seed)
    assert phases == ["random", "random", "score"]


@pytest.mark.parametrize("ratio", [0.3, 0.75])
def test_random_masks_can_be_nested_over_clients_and_rounds(context, ratio):
    model, context = context
    method = create_method("ca-hfp", warmup=2, nested=True)
    first = begin(model, method, context)
    _, second = one_round(context, method, first)
    narrow, wide = Client(7, 10, ratio), Client(8, 10, 0.25)
    assert method.plan(context, first, narrow) == method.plan(context, second, narrow)
    for name in context.groups.names:
        small, large = (set(method.plan(context, first, client).kept[name]) for client in (narrow, wide))
        assert small <= large


def test_ca_hfp_keeps_the_highest_scores(context):
    model, context = context
    method = create_method("ca-hfp", warmup=1)
    _, after = one_round(context, method, begin(model, method, context))
    plan = keep_best(context.groups, 0.5, after.method_state.scores)
    for name, scores in after.method_state.scores.items():
        kept = torch.zeros(len(scores), dtype=torch.bool)
        kept[list(plan.kept[name])] = True
        assert scores[kept].min() >= scores[~kept].max()


def test_exploring_keeps_the_very_best_and_draws_the_others(context):
    _, context = context
    scores = {name: torch.arange(size, dtype=torch.float) for name, size in context.groups.sizes.items()}
    drawn = [keep_best(context.groups, 0.5, scores, 0.5, torch.Generator().manual_seed(seed)) for seed in range(60)]
    for name, size in context.groups.sizes.items():
        for plan in drawn:
            assert len(plan.kept[name]) == size // 2
            assert set(range(size - size // 4, size)) <= set(plan.kept[name])
        assert set.union(*(set(plan.kept[name]) for plan in drawn)) == set(range(size))


def test_submodels_of_higher_ratios_are_nested(context):
    model, context = context
    method = create_method("ca-hfp", warmup=1)
    _, after = one_round(context, method, begin(model, method, context))
    wide, narrow = (keep_best(context.groups, ratio, after.method_state.scores) for ratio in (0.25, 0.75))
    for name in context.groups.names:
        assert set(narrow.kept[name]) <= set(wide.kept[name])


@pytest.mark.parametrize("name", ["fedavg", "fedprox"])
def test_methods_of_full_models_take_their_mean_weighted_by_samples(context, name):
    model, context = context
    method = create_method(name)
    state = begin(model, method, context)
    updates, after = one_round(context, method, state)
    for update in updates:
        assert update.task.index_map == IndexMap.identity(model)
    for name in state.weights:
        expected = sum(u.client.samples / SAMPLES * u.reply.tensors[name].double() for u in updates)
        torch.testing.assert_close(after.weights[name].double(), expected, rtol=1e-12, atol=1e-12)
    assert after.round == 1


@pytest.mark.parametrize(
    ("channels", "ratio", "kept"), [(16, 0.25, 12), (16, 0.0, 16), (4, 0.5, 2), (3, 0.5, 1), (10, 0.9, 1), (5, 0.3, 3)]
)
def test_keep_count(channels, ratio, kept):
    assert keep_count(channels, ratio, "layer") == kept


def test_a_layer_left_without_channels_is_refused():
    with pytest.raises(InputError, match=r"removing 0.9 of the 4 channels of stem.0 leaves none; use a smaller ratio"):
        keep_count(4, 0.9, "stem.0")


def test_random_choice_is_uniform_over_channels(context):
    _, context = context
    name = context.groups.names[0]
    counts = torch.zeros(context.groups.sizes[name])
    for seed in range(200):
        counts[list(keep_random(context.groups, 0.5, torch.Generator().manual_seed(seed)).kept[name])] += 1
    assert counts.min() > 60
    assert counts.max() < 140


def test_channels_that_go_together_are_chosen_together():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2), nn.ReLU(), nn.Conv2d(8, 4, 1))
    groups = Coupling.trace(model, torch.zeros(2, 3, 5, 5), [model[4]])
    scores = {name: torch.arange(size, dtype=torch.float) for name, size in groups.sizes.items()}
    for plan in (keep_best(groups, 0.5, scores), keep_random(groups, 0.5, torch.Generator().manual_seed(1))):
        assert plan.ratio == 0.5
        groups.index_map(plan)


def test_a_window_starts_anywhere_and_wraps(context):
    _, context = context
    name = context.groups.names[0]
    size = context.groups.sizes[name]
    assert keep_window(context.groups, 0.5).kept[name] == tuple(range(size // 2))
    assert keep_window(context.groups, 0.5, start=size - 1).kept[name] == (*range(size // 2 - 1), size - 1)
    assert keep_window(context.groups, 0.0, start=3).kept[name] == tuple(range(size))
    assert len(keep_window(context.groups, 0.999).kept[name]) == 1


@pytest.mark.parametrize(("ratio", "kept"), [(0.7, 3), (0.71, 3), (0.69, 4), (0.1, 9)])
def test_a_window_rounds_up_but_not_for_the_error_of_a_float(ratio, kept):
    model = nn.Sequential(nn.Conv2d(1, 10, 1), nn.Conv2d(10, 2, 1))
    groups = Coupling.trace(model, torch.zeros(2, 1, 3, 3), [model[1]])
    assert len(keep_window(groups, ratio).kept["0"]) == kept


class Mixed(nn.Module):
    """Residual, depthwise, grouped and concatenated channels: what methods that slice layers by hand can't do."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8))
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.grouped = nn.Conv2d(8, 8, 1, groups=2)
        self.joined = nn.Sequential(nn.Conv2d(16, 12, 1, bias=False), nn.BatchNorm2d(12))
        self.classifier = nn.Linear(12, 10)

    def forward(self, x):
        x = functional.relu(self.stem(x))
        y = functional.relu(self.depthwise(x)) + x
        x = functional.relu(self.joined(torch.cat([y, functional.relu(self.grouped(x))], 1)))
        return self.classifier(x.mean((2, 3)))

    def get_classifier(self):
        return self.classifier


@pytest.fixture(scope="module")
def mixed():
    torch.manual_seed(0)
    model = Mixed().double()
    clients = (Client(0, 16, 0.5), Client(1, 14, 0.5), Client(2, 12, 0.0))
    return model, context_of(model, clients, shape=(1, 6, 6))


def trained_round(model, context, method, state):
    """One round with real training."""
    updates = []
    for client in method.select(context, state, context.clients):
        task = assigned(method, context, state, client)
        local = local_of(model, context, client, round=state.round, samples=client.samples)
        updates.append(Update(client, task, method.train(local, task), local.training.step_size))
    return updates, collected(context, method, state, updates)


@pytest.mark.parametrize("kind", methods(), ids=lambda kind: kind.name)
def test_every_method_runs_on_any_architecture_and_changes_nothing_it_was_given(kind, mixed):
    method = create_method(kind.name, **QUICK.get(kind.name, {}))
    model, context = prepared(method, *mixed)
    norm = next(name.removesuffix("running_mean") for name in model.state_dict() if "stem.1.running_mean" in name)
    state = begin(model, method, context)
    skeleton = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for _ in range(3):
        before = {name: tensor.clone() for name, tensor in state.weights.items()}
        updates, after = trained_round(model, context, method, state)
        assert after.round == state.round + 1
        for name, tensor in before.items():
            assert torch.equal(state.weights[name], tensor)
            assert torch.equal(model.state_dict()[name], skeleton[name])
            assert after.weights[name].dtype == tensor.dtype
            assert after.weights[name].shape == tensor.shape
            assert torch.isfinite(after.weights[name]).all()
        assert all(update.reply.steps > 0 and update.reply.training_macs > 0 for update in updates)
        assert not torch.equal(after.weights[norm + "running_mean"], before[norm + "running_mean"])
        assert after.weights[norm + "num_batches_tracked"] > before[norm + "num_batches_tracked"]
        state = after


@pytest.mark.parametrize("kind", methods(), ids=lambda kind: kind.name)
def test_a_client_elsewhere_gives_the_same_reply(kind, mixed):
    options = QUICK.get(kind.name, {})
    method = create_method(kind.name, **options)
    model, context = prepared(method, *mixed)
    state = begin(model, method, context)
    if kind.name == "prunefl":
        _, state = trained_round(model, context, method, state)
    client = context.clients[1]
    task = assigned(method, context, state, client)
    assert json.loads(json.dumps(task.values)) == dict(task.values)
    here = method.train(local_of(model, context, client), task)
    torch.manual_seed(99)
    other = Mixed().double()
    other, there = prepared(method, other, context_of(other, (), (1, 6, 6)))
    elsewhere = create_method(kind.name, **options).train(local_of(other, there, client), task)
    assert here.tensors.keys() == elsewhere.tensors.keys()
    for name, tensor in here.tensors.items():
        assert torch.equal(tensor, elsewhere.tensors[name])
    assert here.training_macs == elsewhere.training_macs


def test_options_come_as_json_gives_them():
    assert create_method("fjord", widths=[0.5, 1]).widths == (0.5, 1)
    assert create_method("prunefl", density=None).density is None
    assert create_method("prunefl", density=1).density == 1
    with pytest.raises(InputError, match="option density of prunefl must be a number; found 'half'"):
        create_method("prunefl", density="half")
    with pytest.raises(InputError, match="option widths of fjord must be a list of numbers; found 0.5"):
        create_method("fjord", widths=0.5)


@pytest.mark.parametrize(
    ("name", "option", "value", "expected"),
    [
        ("dapperfl", "first", 1.2, "in [0, 1]"),
        ("dapperfl", "regularisation", -1, "a finite number of at least 0"),
        ("fedmp", "most", 1.5, "in (0, 1)"),
        ("fedmp", "discount", 1.5, "in (0, 1)"),
        ("fedmp", "finest", 1.5, "in (0, 1)"),
        ("fedprox", "mu", -0.1, "a finite number of at least 0"),
        ("fedprox", "mu", float("nan"), "a finite number of at least 0"),
        ("fedrts", "every", 0, "at least 1"),
        ("fedrts", "exchange", 1.5, "in [0, 1]"),
        ("fedrts", "density", 0, "in (0, 1]"),
        ("fjord", "widths", (0.0, 1.0), "in (0, 1]"),
        ("fjord", "distillation", 1.5, "in [0, 1]"),
        ("fjord", "temperature", 0, "in (0, 1000000]"),
        ("fjord", "temperature", 1e300, "in (0, 1000000]"),
        ("prunefl", "every", 0, "at least 1"),
        ("prunefl", "overhead", 0, "a finite number above 0"),
        ("prunefl", "share", 1.5, "in [0, 1]"),
        ("prunefl", "density", 0, "in (0, 1]"),
        ("prunefl", "passes", 10**30, "in [1, 1000000]"),
        ("scalefl", "temperature", 1e300, "in (0, 1000000]"),
    ],
)
def test_values_out_of_an_options_range_are_refused(name, option, value, expected):
    with pytest.raises(InputError, match=re.escape(f"option {option} of {name} must be {expected}; found ")):
        create_method(name, **{option: value})
