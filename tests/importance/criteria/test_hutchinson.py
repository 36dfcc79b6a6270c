"""Hutchinson's probes against the Hessian itself, float64."""

import pytest
import torch
from networks.criteria import data, make
from torch import nn
from torch.nn import functional

from hfp.importance import CriterionError, HutchinsonImportance


def hessian_diagonal(model, images, labels):
    """Entry by entry, by differentiating every entry of the gradient."""
    parameters = list(model.parameters())
    loss = functional.cross_entropy(model(images), labels)
    gradient = torch.autograd.grad(loss, parameters, create_graph=True)
    found = {}
    for (name, parameter), values in zip(model.named_parameters(), gradient, strict=True):
        flat = [
            torch.autograd.grad(value, parameter, retain_graph=True)[0].flatten()[place]
            for place, value in enumerate(values.flatten())
        ]
        found[name] = torch.stack(flat).view_as(parameter)
    return found


def test_mean_of_probes_tends_to_the_diagonal():
    model, (images, labels) = make("flat"), data()
    truth = torch.cat([value.flatten() for value in hessian_diagonal(model, images, labels).values()])

    def estimate(probes):
        criterion = HutchinsonImportance(probes=probes)
        criterion.accumulate(model, [(images, labels)], functional.cross_entropy)
        return torch.cat([criterion.statistics(name)[1].flatten() for name, _ in model.named_parameters()])

    few, many = ((estimate(probes) - truth).norm() / truth.norm() for probes in (4, 128))
    assert few > 0.1
    assert many < 0.25 * few


def test_one_probe_is_the_product_with_its_signs():
    model, (images, labels) = make("residual"), data()
    criterion = HutchinsonImportance(seed=7)
    criterion.accumulate(model, [(images, labels)], functional.cross_entropy)
    generator = torch.Generator().manual_seed(7)
    parameters = list(model.parameters())
    signs = [torch.randint(0, 2, p.shape, generator=generator).double() * 2 - 1 for p in parameters]

    def loss(*values):
        named = dict(zip([name for name, _ in model.named_parameters()], values, strict=True))
        return functional.cross_entropy(torch.func.functional_call(model, named, (images,)), labels)

    products = torch.autograd.functional.hvp(loss, tuple(parameters), tuple(signs))[1]
    for (name, _), product, sign in zip(model.named_parameters(), products, signs, strict=True):
        torch.testing.assert_close(criterion.statistics(name)[1], product * sign, rtol=1e-9, atol=1e-12)


def test_a_model_without_second_derivatives_is_refused_with_a_way_out():
    model = nn.Sequential(nn.Linear(4, 6), nn.Hardsigmoid(), nn.Linear(6, 3))
    batch = torch.randn(8, 4), torch.randint(3, (8,))
    with pytest.raises(CriterionError, match="can't be differentiated twice .*hardsigmoid.*: take empirical-fisher"):
        HutchinsonImportance().accumulate(model, [batch], functional.cross_entropy)
