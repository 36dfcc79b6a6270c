"""The diagonal empirical Fisher against one backward pass per sample, float64."""

import pytest
import torch
from networks.criteria import NETWORKS, data, make
from torch.nn import functional

from hfp.importance import EmpiricalFisherImportance


def loop(model, images, labels):
    """Mean gradient and mean squared gradient by a loop over samples."""
    first = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    second = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for image, label in zip(images, labels, strict=True):
        gradients = torch.autograd.grad(functional.cross_entropy(model(image[None]), label[None]), model.parameters())
        for name, gradient in zip(first, gradients, strict=True):
            first[name] += gradient / len(images)
            second[name] += gradient.square() / len(images)
    return first, second


@pytest.mark.parametrize("name", NETWORKS)
def test_moments_equal_a_loop_over_samples(name):
    model, (images, labels) = make(name), data()
    criterion = EmpiricalFisherImportance()
    criterion.accumulate(model, [(images[:4], labels[:4]), (images[4:], labels[4:])], functional.cross_entropy)
    first, second = loop(model, images, labels)
    for parameter in first:
        gradient, curvature = criterion.statistics(parameter)
        torch.testing.assert_close(gradient, first[parameter], rtol=1e-10, atol=1e-14)
        torch.testing.assert_close(curvature, second[parameter], rtol=1e-10, atol=1e-14)
