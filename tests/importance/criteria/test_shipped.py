"""torch-pruning's criteria: the same scores as theirs, without their side effects."""

import copy

import pytest
import torch
import torch_pruning as tp
from networks.criteria import data, groups, make
from torch import nn
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm

from hfp.importance import CriterionError, ShippedImportance, create
from hfp.reconstruct import Coupling

THEIRS = {
    "l1": lambda: tp.importance.MagnitudeImportance(p=1),
    "l2": lambda: tp.importance.MagnitudeImportance(p=2),
    "lamp": tp.importance.LAMPImportance,
    "fpgm": tp.importance.FPGMImportance,
    "bn-scale": tp.importance.BNScaleImportance,
}


@pytest.mark.parametrize("name", THEIRS)
def test_weight_criteria_score_as_torch_pruning_does(name):
    model = make("residual")
    for group in groups(model).values():
        expected = THEIRS[name]()(group)
        if expected is None:
            with pytest.raises(CriterionError, match="has nothing to score in the group of"):
                create(name)(group)
        else:
            assert torch.equal(create(name)(group), expected)


@pytest.mark.parametrize("count", [2, 4])
def test_distances_see_a_grouped_convolution_as_the_dense_one_that_it_equals(count):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 12, 3, groups=count, bias=False))
    impulses = torch.zeros(8, 8, 5, 5)
    impulses[range(8), range(8), 2, 2] = 1
    graph = tp.DependencyGraph().build_dependency(model, torch.randn(2, 3, 5, 5))
    group = graph.get_pruning_group(model[0], tp.prune_conv_out_channels, list(range(8)))
    assert [item.dep.target.module for item in group.items] == [*model]
    squares = (model[0].weight.flatten(1).square(), model[1](impulses).flatten(1).square())
    expected = torch.stack([torch.cdist(rows, rows).sum(0) for rows in squares]).mean(0)
    torch.testing.assert_close(create("fpgm")(group), expected / expected.mean())


@pytest.mark.parametrize("name", ["l1", "taylor", "hessian"])
def test_inputs_that_have_several_outputs_each_are_scored_by_all_weights_that_read_them(name):
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 4, 1), nn.Conv2d(4, 8, 3, groups=4), nn.Conv2d(8, 2, 1))
    model, images, labels = nn.Sequential(*layers, nn.Flatten()), torch.randn(1, 3, 3, 3), torch.tensor([1])
    criterion = create(name)
    if name != "l1":
        criterion.accumulate(model, [(images, labels)], functional.cross_entropy)
    functional.cross_entropy(model(images), labels).backward()
    entries = {
        "l1": lambda weight: weight.abs(),
        "taylor": lambda weight: (weight * weight.grad).abs(),
        "hessian": lambda weight: weight.square() * weight.grad.square(),
    }[name]
    first, second, third = (entries(layer.weight) for layer in layers)
    both = second.reshape(4, -1).sum(1)  # as what it writes, and as what it reads
    written, read = first.flatten(1).sum(1), third.reshape(2, 4, 2).sum((0, 2))
    own = Coupling.trace(model, images).groups_of(model)("0")
    graph = tp.DependencyGraph().build_dependency(model, images)  # which does not follow what the layer writes
    theirs = graph.get_pruning_group(model[0], tp.prune_conv_out_channels, [*range(4)])
    for group, parts in ((own, (written, both, both, read)), (theirs, (written, both))):
        expected = torch.stack(parts).mean(0).detach()
        torch.testing.assert_close(criterion(group), expected / expected.mean())


def test_taylor_scores_as_torch_pruning_does_and_leaves_no_gradient():
    model, (images, labels) = make("residual"), data()
    criterion = create("taylor")
    criterion.accumulate(model, [(images[:4], labels[:4]), (images[4:], labels[4:])], functional.cross_entropy)
    found = {name: criterion(group) for name, group in groups(model).items()}
    assert all(parameter.grad is None for parameter in model.parameters())
    functional.cross_entropy(model(images), labels).backward()
    for name, group in groups(model).items():
        torch.testing.assert_close(found[name], tp.importance.TaylorImportance()(group), rtol=1e-9, atol=1e-12)


def test_hessian_scores_half_precision_by_squares_that_it_can_not_hold():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6, bias=False), nn.ReLU(), nn.Linear(6, 3, bias=False)).half()
    images, labels = torch.randn(16, 4).half() * 1e-3, torch.randint(3, (16,))
    found = {}
    for kind in (torch.float16, torch.float32):
        own = copy.deepcopy(model).to(kind)
        criterion = create("hessian")
        criterion.accumulate(own, [(images.to(kind), labels)], functional.cross_entropy)
        graph = tp.DependencyGraph().build_dependency(own, images.to(kind))
        found[kind] = criterion(graph.get_pruning_group(own[0], tp.prune_linear_out_channels, list(range(6))))
        assert all(parameter.grad is None for parameter in own.parameters())
    torch.testing.assert_close(found[torch.float16], found[torch.float32], rtol=0.01, atol=0.0)


def accumulated_on_a_computed_weight(name, place):
    """A criterion, and a group of a model of which one layer computes its weight."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    weight_norm(model[place])
    criterion, images = create(name), torch.randn(16, 4)
    criterion.accumulate(model, [(images, torch.randint(3, (16,)))], functional.cross_entropy)
    graph = tp.DependencyGraph().build_dependency(model, images)
    return criterion, graph.get_pruning_group(model[0], tp.prune_linear_out_channels, list(range(6)))


@pytest.mark.parametrize("place", [0, 2])
def test_hessian_scores_groups_with_a_weight_that_is_computed(place):
    criterion, group = accumulated_on_a_computed_weight("hessian", place)
    assert criterion(group).shape == (6,)


@pytest.mark.parametrize("place", [0, 2])
def test_taylor_names_a_layer_whose_weight_is_computed_where_torch_pruning_would_read_its_gradient(place):
    criterion, group = accumulated_on_a_computed_weight("taylor", place)
    with pytest.raises(CriterionError, match=f"layer '{place}' computes its weight from other parameters.*take group-"):
        criterion(group)


def test_hessian_counts_every_sample_where_torch_pruning_counts_the_last():
    model, (images, labels) = make("residual"), data()
    whole, last = create("hessian"), create("hessian")
    whole.accumulate(model, [(images, labels)], functional.cross_entropy)
    last.accumulate(model, [(images[-1:], labels[-1:])], functional.cross_entropy)
    theirs = tp.importance.HessianImportance()
    theirs.zero_grad()
    for loss in functional.cross_entropy(model(images), labels, reduction="none"):
        model.zero_grad()
        loss.backward(retain_graph=True)
        theirs.accumulate_grad(model)
    group = groups(model)["side"]
    scores = theirs(group)
    torch.testing.assert_close(last(group), scores, rtol=1e-9, atol=1e-12)
    assert not torch.allclose(whole(group), scores, rtol=0.1)


def test_groups_are_not_reordered():
    model, (images, labels) = make("residual"), data()
    criterion = create("taylor")
    criterion.accumulate(model, [(images, labels)], functional.cross_entropy)
    for group in groups(model).values():
        for item in group:
            item.idxs.reverse()
            item.root_idxs.reverse()
        before = [list(item.idxs) for item in group]
        reversed_scores = criterion(group)
        assert [list(item.idxs) for item in group] == before
        assert len(reversed_scores) == len(before[0])


def test_random_is_seeded_and_leaves_the_global_generator_alone():
    group = groups(make("residual"))["side"]
    state = torch.get_rng_state()
    one, two = create("random", seed=3), create("random", seed=3)
    first = one(group)
    assert torch.equal(first, two(group))
    assert not torch.equal(first, one(group))
    assert not torch.equal(first, create("random", seed=4)(group))
    assert torch.equal(state, torch.get_rng_state())


def test_nothing_to_score_is_an_error_not_a_skip():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1))
    graph = tp.DependencyGraph().build_dependency(model, torch.randn(2, 3, 4, 4))
    group = graph.get_pruning_group(model[0], tp.prune_conv_out_channels, [0, 1, 2, 3])
    assert tp.importance.BNScaleImportance()(group) is None
    with pytest.raises(CriterionError, match="nothing to score in the group of '0'"):
        ShippedImportance(tp.importance.BNScaleImportance())(group)


@pytest.mark.parametrize("name", ["l1", "l2", "fpgm", "lamp"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named_instead_of_scored(name, value):
    model = make("residual")
    group = groups(model)["side"]
    with torch.no_grad():
        model.side.weight.view(-1)[3] = value
    with pytest.raises(CriterionError, match="'side.weight' holds values that are not finite"):
        create(name)(group)
