"""Criteria at work: inside torch-pruning's own pruner, with layers that a user wrote, with recomputed activations."""

import copy
import warnings

import pytest
import torch
import torch_pruning as tp
from networks.criteria import data, heads, make
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from hfp.importance import CriterionError, GroupFisherImportance, Slot, create, register_layer
from hfp.reconstruct import Coupling

WITH_DATA = [
    "group-fisher",
    "group-kl",
    "group-loss",
    "kronecker",
    "empirical-fisher",
    "sampled-fisher",
    "hutchinson",
    "taylor",
]


def pruned_twice(model, criterion, global_pruning):
    """Parameters before and after each of two steps, the criterion accumulated anew before each."""
    images, labels = data(dtype=next(model.parameters()).dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pruner = tp.pruner.BasePruner(
            model, images[:2], importance=criterion, pruning_ratio=0.5, iterative_steps=2, ignored_layers=[model.head],
            global_pruning=global_pruning, num_heads=heads(model),
        )  # fmt: skip
        sizes = [sum(p.numel() for p in model.parameters())]
        for _ in range(2):
            if hasattr(criterion, "accumulate"):
                criterion.reset()
                criterion.accumulate(model, [(images, labels)], functional.cross_entropy)
            pruner.step()
            sizes.append(sum(p.numel() for p in model.parameters()))
            with torch.no_grad():
                assert model(images).shape == (6, 5)
    return sizes


@pytest.mark.parametrize("name", [*WITH_DATA, "l2", "random", "hessian"])
@pytest.mark.parametrize("global_pruning", [False, True])
def test_two_steps_of_torch_pruning(name, global_pruning):
    before, middle, after = pruned_twice(make("residual"), create(name), global_pruning)
    assert before > middle > after


@pytest.mark.parametrize("network", ["flat", "normed", "in-place"])
@pytest.mark.parametrize("name", ["group-fisher", "kronecker", "empirical-fisher"])
def test_two_steps_with_other_layers(network, name):
    before, middle, after = pruned_twice(make(network), create(name), global_pruning=True)
    assert before > middle > after


class Mixing(nn.Module):
    """A user's 1×1 convolution over channels that come last."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(outputs, inputs, dtype=torch.float64))

    def forward(self, x):
        return torch.einsum("oi,nhwi->nhwo", self.matrix, x)


class Mixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.other, self.mixing = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 1), Mixing(6, 4)
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        x = self.other(x) + self.mixing(x.movedim(1, -1)).movedim(-1, 1)
        return self.head(x.mean((2, 3)))


def test_a_user_s_own_layer_is_an_error_until_it_is_registered(table):
    torch.manual_seed(0)
    model, (images, labels) = Mixed().double(), data()
    group = Coupling.trace(model, images[:2]).groups_of(model)("stem")
    criterion = GroupFisherImportance()
    criterion.accumulate(model, [(images, labels)], functional.cross_entropy)
    with pytest.raises(CriterionError, match=r"'mixing.matrix' \[4, 6\] of a Mixing.*register_layer\(Mixing, 'in' or"):
        criterion(group)
    register_layer(Mixing, "in", (Slot("matrix", 1),), channel_dim=-1)
    register_layer(Mixing, "out", (Slot("matrix", 0),))
    with pytest.raises(CriterionError, match="'mixing' never ran while accumulating"):
        criterion(group)
    criterion.reset()
    criterion.accumulate(model, [(images, labels)], functional.cross_entropy)
    rows = []
    for image, label in zip(images, labels, strict=True):
        gate = torch.ones(6, dtype=torch.float64, requires_grad=True)
        handles = [
            model.other.register_forward_pre_hook(lambda module, args, gate=gate: (args[0] * gate[:, None, None],)),
            model.mixing.register_forward_pre_hook(lambda module, args, gate=gate: (args[0] * gate,)),
        ]
        rows.append(torch.autograd.grad(functional.cross_entropy(model(image[None]), label[None]), gate)[0])
        for handle in handles:
            handle.remove()
    torch.testing.assert_close(criterion.gate_gradients(group)[:, 0], torch.stack(rows), rtol=1e-10, atol=1e-14)
    writing = Coupling.trace(model, images[:2]).groups_of(model)("other")
    assert criterion(writing).shape == (4,)


def test_recurrent_layers_are_named_and_the_others_scored():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.enter, self.inner, self.memory = nn.Linear(24, 6), nn.Linear(6, 6), nn.GRU(6, 6, batch_first=True)
            self.head = nn.Linear(6, 5)

        def forward(self, x):
            x = torch.relu(self.inner(torch.relu(self.enter(x.flatten(1, 2).transpose(1, 2)))))
            return self.head(self.memory(x)[0].mean(1))

    model, (images, labels) = Recurrent().double(), data()
    group = Coupling.trace(model, images[:2]).groups_of(model)
    for name, message in (("group-fisher", "of a GRU"), ("kronecker", "of a GRU")):
        criterion = create(name)
        criterion.accumulate(model, [(images, labels)], functional.cross_entropy)
        assert criterion(group("enter")).shape == (6,)
        with pytest.raises(CriterionError, match=message):
            criterion(group("inner"))


class Recomputed(nn.Module):
    def __init__(self, model, reentrant):
        super().__init__()
        self.model, self.head, self.reentrant = model, model.head, reentrant

    def forward(self, x):
        if self.reentrant:
            x = x.requires_grad_()
        return checkpoint(self.model, x, use_reentrant=self.reentrant)


def test_second_derivatives_through_a_reentrant_checkpoint_are_refused():
    with pytest.raises(CriterionError, match="use_reentrant=False"):
        create("hutchinson").accumulate(Recomputed(make("residual"), True), [data()], functional.cross_entropy)


@pytest.mark.parametrize("name", ["group-fisher", "kronecker", "empirical-fisher", "taylor"])
@pytest.mark.parametrize("reentrant", [True, False])
def test_recomputed_activations_give_the_same_scores(name, reentrant):
    model, (images, labels) = make("residual"), data()
    inner = copy.deepcopy(model)
    plain, recomputed = create(name), create(name)
    plain.accumulate(model, [(images, labels)], functional.cross_entropy)
    wrapped = Recomputed(inner, reentrant)
    recomputed.accumulate(wrapped, [(images, labels)], functional.cross_entropy)
    if name == "group-fisher":
        for (layer, side), rows in plain._batches[0].rows.items():
            torch.testing.assert_close(recomputed._batches[0].rows[f"model.{layer}", side], rows)
    elif name == "kronecker":
        for layer, factors in plain._totals.factors.items():
            again = recomputed._totals.factors[f"model.{layer}"]
            torch.testing.assert_close(again.moment(True), factors.moment(True))
            torch.testing.assert_close(again.gradient, factors.gradient)
    else:
        for parameter, _ in model.named_parameters():
            for ours, theirs in zip(
                plain.statistics(parameter), recomputed.statistics(f"model.{parameter}"), strict=True
            ):
                torch.testing.assert_close(ours, theirs)
