"""Each method against the naive definition, in float64 and with dense masks."""

import pytest
import torch
from torch import nn

from hfp.errors import InputError
from hfp.methods import Client, Setting, Update, create_method, methods
from hfp.methods.selection import keep_best, keep_count, keep_random
from hfp.models import classifier_of, create_model
from hfp.reconstruct import ChannelGroups, IndexMap

CLIENTS = (Client(0, 30, 0.25), Client(1, 50, 0.5), Client(2, 20, 0.75))


@pytest.fixture(scope="module")
def setting():
    torch.manual_seed(0)
    model = create_model("resnet8", in_channels=1, width=0.5).double()
    groups = ChannelGroups.trace(model, torch.zeros(2, 1, 8, 8, dtype=torch.float64), [classifier_of(model)])
    return model, Setting(groups, tuple(dict(model.named_parameters())), CLIENTS, seed=0)


def trained(setting: Setting, method, state, seed=0, steps=4, step_size=0.5):
    """Updates as clients would send them, with random changes."""
    generator = torch.Generator().manual_seed(seed)
    for client in setting.clients:
        index_map = method.plan(setting, state, client)
        received = index_map.restrict(state.weights)
        after = {
            name: tensor + torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
            if tensor.is_floating_point()
            else tensor + 1
            for name, tensor in received.items()
        }
        yield Update(client, index_map, received, after, steps, step_size, loss=0.0)


def one_round(setting, method, state, seed=0):
    updates = list(trained(setting, method, state, seed))
    collector = method.collect(setting, state)
    for update in updates:
        collector.add(update)
    return updates, collector.finish()


def held(update: Update, name: str) -> torch.Tensor:
    return update.index_map.masks()[name]


def dense(update: Update, name: str, elsewhere: torch.Tensor) -> torch.Tensor:
    full = elsewhere.clone()
    full[held(update, name)] = update.state[name].reshape(-1)
    return full


def start(model: nn.Module, method, setting):
    return method.start(setting, {name: tensor.clone() for name, tensor in model.state_dict().items()})


def test_ca_hfp_fills_with_the_global_values(setting):
    model, setting = setting
    method = create_method("ca-hfp")
    state = start(model, method, setting)
    updates, after = one_round(setting, method, state)
    for name, before in state.weights.items():
        expected = sum(u.client.samples / 100 * dense(u, name, before).double() for u in updates)
        torch.testing.assert_close(after.weights[name].double(), expected, rtol=1e-12, atol=1e-12)
        nobody = ~torch.stack([held(u, name) for u in updates]).any(0)
        assert torch.equal(after.weights[name][nobody], before[nobody])


def test_ca_hfp_averages_over_holders_when_asked(setting):
    model, setting = setting
    method = create_method("ca-hfp", rule="holders")
    state = start(model, method, setting)
    updates, after = one_round(setting, method, state)
    for name in setting.parameters:
        weights = sum(u.client.samples * held(u, name).double() for u in updates)
        total = sum(u.client.samples * dense(u, name, torch.zeros_like(state.weights[name])) for u in updates)
        expected = torch.where(weights > 0, total / weights, state.weights[name])
        torch.testing.assert_close(after.weights[name], expected, rtol=1e-10, atol=1e-10)


def entries_of(groups: ChannelGroups, group: str, channel: int) -> dict[str, torch.Tensor]:
    """The entries that go when one channel goes."""
    kept = [c for c in range(groups.sizes[group]) if c != channel]
    return {name: ~mask for name, mask in groups.index_map(groups.plan({group: kept})).masks().items()}


@pytest.mark.parametrize("form", ["curvature", "paper", "taylor"])
def test_ca_hfp_scores_channels_by_their_entries(setting, form):
    model, setting = setting
    method = create_method("ca-hfp", warmup=1, form=form)
    state = start(model, method, setting)
    updates, after = one_round(setting, method, state)

    gradient, curvature = {}, {}
    for name in setting.parameters:
        weights = sum(u.client.samples * held(u, name).double() for u in updates)
        zero = torch.zeros_like(state.weights[name])
        steps = [(u, (state.weights[name] - dense(u, name, state.weights[name])) / (0.5 * 4)) for u in updates]
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
    for group, size in setting.groups.sizes.items():
        for channel in range(0, size, 3):
            gone = entries_of(setting.groups, group, channel)
            expected = sum(
                definition(gradient[n], curvature[n], after.weights[n])[gone[n]].sum() for n in setting.parameters
            )
            assert after.memory.scores[group][channel].item() == pytest.approx(expected.item(), rel=1e-6)


def test_ca_hfp_draws_other_random_masks_each_round_and_client_until_warmup_ends(setting):
    model, setting = setting
    method = create_method("ca-hfp", warmup=2)
    first = start(model, method, setting)
    _, second = one_round(setting, method, first)
    _, third = one_round(setting, method, second)
    same_ratio = (Client(5, 10, 0.5), Client(6, 10, 0.5))
    assert [method.phase(state) for state in (first, second, third)] == ["random", "random", "score"]
    maps = [[method.plan(setting, state, client) for client in same_ratio] for state in (first, second, third)]
    assert maps[0][0] != maps[0][1]
    assert maps[0][0] != maps[1][0]
    assert maps[2][0] == maps[2][1]


def test_ca_hfp_keeps_the_highest_scores(setting):
    model, setting = setting
    method = create_method("ca-hfp", warmup=1)
    _, after = one_round(setting, method, start(model, method, setting))
    plan = keep_best(setting.groups, 0.5, after.memory.scores)
    for name, scores in after.memory.scores.items():
        kept = torch.zeros(len(scores), dtype=torch.bool)
        kept[list(plan.kept[name])] = True
        assert scores[kept].min() >= scores[~kept].max()


def test_submodels_of_higher_ratios_are_nested(setting):
    model, setting = setting
    method = create_method("ca-hfp", warmup=1)
    _, after = one_round(setting, method, start(model, method, setting))
    wide, narrow = (keep_best(setting.groups, ratio, after.memory.scores) for ratio in (0.25, 0.75))
    for name in setting.groups.names:
        assert set(narrow.kept[name]) <= set(wide.kept[name])


def test_fedavg_is_the_weighted_mean_of_full_models(setting):
    model, setting = setting
    method = create_method("fedavg")
    state = start(model, method, setting)
    updates, after = one_round(setting, method, state)
    for update in updates:
        assert update.index_map == IndexMap.identity(model)
    for name in state.weights:
        expected = sum(u.client.samples / 100 * u.state[name].double() for u in updates)
        torch.testing.assert_close(after.weights[name].double(), expected, rtol=1e-12, atol=1e-12)
    assert after.round == 1


def test_state_before_a_round_is_not_changed(setting):
    model, setting = setting
    for kind in methods():
        method = create_method(kind.name)
        state = start(model, method, setting)
        before = {name: tensor.clone() for name, tensor in state.weights.items()}
        one_round(setting, method, state)
        for name, tensor in state.weights.items():
            assert torch.equal(tensor, before[name])


@pytest.mark.parametrize(
    ("channels", "ratio", "kept"), [(16, 0.25, 12), (16, 0.0, 16), (4, 0.5, 2), (3, 0.5, 1), (10, 0.9, 1), (5, 0.3, 3)]
)
def test_keep_count(channels, ratio, kept):
    assert keep_count(channels, ratio, "layer") == kept


def test_a_layer_left_without_channels_is_refused():
    with pytest.raises(InputError, match=r"removing 0.9 of the 4 channels of stem.0 leaves none; use a smaller ratio"):
        keep_count(4, 0.9, "stem.0")


def test_random_choice_is_uniform_over_channels(setting):
    _, setting = setting
    name = setting.groups.names[0]
    counts = torch.zeros(setting.groups.sizes[name])
    for seed in range(200):
        counts[list(keep_random(setting.groups, 0.5, torch.Generator().manual_seed(seed)).kept[name])] += 1
    assert counts.min() > 60
    assert counts.max() < 140


def test_channels_that_go_together_are_chosen_together():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2), nn.ReLU(), nn.Conv2d(8, 4, 1)
    )
    groups = ChannelGroups.trace(model, torch.zeros(2, 3, 5, 5), [model[4]])
    scores = {name: torch.arange(size, dtype=torch.float) for name, size in groups.sizes.items()}
    for plan in (keep_best(groups, 0.5, scores), keep_random(groups, 0.5, torch.Generator().manual_seed(1))):
        assert plan.ratio == 0.5
        groups.index_map(plan)
