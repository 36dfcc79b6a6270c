"""Group Fisher against its definition: one sample at a time, a gate per channel, float64."""

from itertools import product

import pytest
import torch
from networks.criteria import data, gate_derivatives, groups, make
from torch import nn
from torch.nn import functional

from hfp.importance import CriterionError, GroupFisherImportance
from hfp.importance.criteria.group_fisher import gauss_newton_root
from hfp.reconstruct import Coupling

PLAIN = ["residual", "depthwise", "flat", "in-place"]


def split(images, labels):
    return [(images[:4], labels[:4]), (images[4:], labels[4:])]


@pytest.mark.parametrize("name", PLAIN)
def test_gate_gradients_equal_the_definition(name):
    model, (images, labels) = make(name), data()
    criterion = GroupFisherImportance()
    criterion.accumulate(model, split(images, labels), functional.cross_entropy)
    for group in groups(model).values():
        expected = gate_derivatives(model, group, functional.cross_entropy, images, labels)
        torch.testing.assert_close(criterion.gate_gradients(group)[:, 0], expected, rtol=1e-10, atol=1e-14)
        torch.testing.assert_close(criterion(group), expected.square().mean(0) / 2, rtol=1e-10, atol=1e-14)


def test_first_order_terms_are_added():
    model, (images, labels) = make("residual"), data()
    for group in groups(model).values():
        v = gate_derivatives(model, group, functional.cross_entropy, images, labels)
        for fisher, first_order, expected in [
            ("empirical", "signed", v.square().mean(0) / 2 - v.mean(0)),
            ("empirical", "absolute", v.square().mean(0) / 2 + v.abs().mean(0)),
            ("off", "signed", -v.mean(0)),
        ]:
            criterion = GroupFisherImportance(fisher, first_order)
            criterion.accumulate(model, split(images, labels), functional.cross_entropy)
            torch.testing.assert_close(criterion(group), expected, rtol=1e-10, atol=1e-14)


def test_gauss_newton_root_has_the_hessian_of_cross_entropy_as_its_mean_square():
    logits = torch.randn(1, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    total = torch.zeros(3, 3, dtype=torch.float64)
    for signs in product([-1.0, 1.0], repeat=3):
        leaf = logits.clone().requires_grad_()
        root = torch.autograd.grad(gauss_newton_root(leaf, torch.tensor([signs], dtype=torch.float64)), leaf)[0]
        total += root.T @ root / 8
    label = torch.tensor([0])
    hessian = torch.autograd.functional.hessian(lambda z: functional.cross_entropy(z[None], label), logits[0])
    torch.testing.assert_close(total, hessian)


def test_gauss_newton_tends_to_the_exact_term():
    model, (images, labels) = make("residual"), data()
    group = groups(model)["side"]
    jacobian = torch.stack(
        [gate_derivatives(model, group, lambda z, _, k=k: z[0, k], images, labels) for k in range(5)], 1
    )
    p = model(images).detach().softmax(1)[..., None]
    exact = ((p * jacobian.square()).sum(1) - (p * jacobian).sum(1).square()).mean(0) / 2
    criterion = GroupFisherImportance("gauss-newton", draws=600)
    criterion.accumulate(model, split(images, labels), functional.cross_entropy)
    torch.testing.assert_close(criterion(group), exact, rtol=0.15, atol=0)


def test_batching_does_not_change_the_draws():
    model, (images, labels) = make("residual"), data()
    whole, parts = GroupFisherImportance("gauss-newton", draws=2), GroupFisherImportance("gauss-newton", draws=2)
    whole.accumulate(model, [(images, labels)], functional.cross_entropy)
    parts.accumulate(model, split(images, labels), functional.cross_entropy)
    for group in groups(model).values():
        torch.testing.assert_close(whole(group), parts(group), rtol=1e-10, atol=1e-14)


def test_nothing_to_score_by_is_refused():
    with pytest.raises(CriterionError, match="no score left"):
        GroupFisherImportance("off")


@pytest.mark.parametrize(
    "between", [nn.Conv2d(8, 12, 3, groups=4, bias=False), nn.Conv2d(8, 16, 3, groups=8, bias=False)]
)
def test_a_channel_that_is_a_whole_group_of_a_convolution_has_one_gate(between):
    torch.manual_seed(0)
    last = nn.Sequential(nn.Conv2d(between.out_channels, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    first, rest = nn.Conv2d(3, 8, 3).double(), nn.Sequential(nn.ReLU(), between, nn.ReLU(), last).double()
    images, labels = torch.randn(4, 3, 7, 7).double(), torch.randint(3, (4,))
    model = nn.Sequential(first, rest)
    criterion = GroupFisherImportance()
    criterion.accumulate(model, [(images, labels)], functional.cross_entropy)
    gates = torch.ones(4, between.groups, dtype=torch.float64, requires_grad=True)
    wide = gates.repeat_interleave(8 // between.groups, 1)[:, :, None, None]
    loss = functional.cross_entropy(rest(first(images) * wide), labels, reduction="sum")
    (expected,) = torch.autograd.grad(loss, gates)
    found = criterion.gate_gradients(Coupling.trace(model, images).groups_of(model)("0"))
    torch.testing.assert_close(found[:, 0], expected, rtol=1e-9, atol=1e-12)
