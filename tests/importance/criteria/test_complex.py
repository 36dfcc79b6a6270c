"""Criteria of models with complex parameters: right by definition, or refused in one line."""

import pytest
import torch
import torch_pruning as tp
from torch import nn
from torch.nn import functional

from hfp.importance import CriterionError, create
from hfp.reconstruct import Coupling

GATED = ["group-fisher", "group-kl", "group-loss"]
OF_SINGLE_WEIGHTS = ["empirical-fisher", "sampled-fisher", "hutchinson", "taylor", "hessian"]
WIDTH = 6


class Spectral(nn.Module):
    """Complex channels between two real layers, which a gate for each channel scales where they are read."""

    def __init__(self):
        super().__init__()
        self.enter = nn.Linear(4, WIDTH)
        self.mix = nn.Linear(WIDTH, WIDTH, dtype=torch.complex64)
        self.head = nn.Linear(WIDTH, 3)
        self.gate = None

    def forward(self, x):
        read = torch.complex(self.enter(x), x[:, :1].sin() * self.enter(x))
        return self.head(self.mix(read if self.gate is None else read * self.gate).abs())


def made(name, **options):
    torch.manual_seed(0)
    model, x = Spectral(), torch.randn(8, 4)
    batch = x, torch.randint(3, (8,))
    criterion = create(name, **options)
    criterion.accumulate(model, [batch], functional.cross_entropy)
    graph = tp.DependencyGraph().build_dependency(model, x)
    group = graph.get_pruning_group(model.mix, tp.prune_linear_in_channels, list(range(WIDTH)))
    return model, batch, criterion, group


def test_gates_of_complex_channels_are_the_derivative_of_their_scale():
    model, (x, labels), criterion, group = made("group-fisher")
    model.gate = torch.ones(8, WIDTH, requires_grad=True)
    loss = functional.cross_entropy(model(x), labels, reduction="sum")
    (expected,) = torch.autograd.grad(loss, model.gate)
    torch.testing.assert_close(criterion(group), expected.square().mean(0) / 2)


@pytest.mark.parametrize("repaired", [False, True])
@pytest.mark.parametrize("name", GATED)
def test_scores_of_complex_channels_are_real_numbers(name, repaired):
    _, _, criterion, group = made(name, repaired=repaired)
    found = criterion(group)
    assert found.is_floating_point() and found.isfinite().all()


@pytest.mark.parametrize("name", OF_SINGLE_WEIGHTS)
def test_criteria_of_single_weights_refuse_complex_ones(name):
    _, _, criterion, group = made(name)
    with pytest.raises(CriterionError, match=r"'mix.weight' is complex.*take group-fisher"):
        criterion(group)


def test_kronecker_refuses_a_layer_with_complex_weights():
    _, _, criterion, group = made("kronecker")
    with pytest.raises(CriterionError, match=r"'mix' \(Linear\) has complex weights.*take group-fisher"):
        criterion(group)


def test_complex_outputs_and_losses_are_refused():
    model, (x, labels) = nn.Linear(4, 3, dtype=torch.complex64), (torch.randn(8, 4).cfloat(), torch.zeros(8).long())
    with pytest.raises(CriterionError, match=r"needs logits .* found a Tensor of torch.complex64"):
        create("group-kl").accumulate(model, [(x, labels)], functional.cross_entropy)
    with pytest.raises(CriterionError, match="must return real numbers, not torch.complex64"):
        create("group-fisher").accumulate(model, [(x, labels)], lambda output, target: output.sum())


def test_a_model_with_complex_layers_is_scored_where_its_channels_are_real():
    torch.manual_seed(0)

    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.enter, self.more, self.last = nn.Linear(4, WIDTH), nn.Linear(WIDTH, 4), Spectral()

        def forward(self, x):
            return self.last(self.more(torch.relu(self.enter(x))))

    model, x = Mixed(), torch.randn(8, 4)
    coupling = Coupling.trace(model, x)
    group = coupling.groups_of(model)("enter")
    for name in (*GATED, *OF_SINGLE_WEIGHTS, "kronecker"):
        criterion = create(name)
        criterion.accumulate(model, [(x, torch.randint(3, (8,)))], functional.cross_entropy)
        assert criterion(group).is_floating_point()
