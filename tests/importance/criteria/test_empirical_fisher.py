"""The diagonal empirical Fisher against one backward pass per sample, float64."""

import pytest
import torch
from networks.criteria import NETWORKS, data, make
from torch import nn
from torch.nn import functional

from hfp.importance import EmpiricalFisherImportance
from hfp.reconstruct import Coupling


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


class Around(nn.Module):
    """A layer that reads and writes the same channels."""

    def __init__(self):
        super().__init__()
        self.inner, self.around, self.outer = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 4, 1)

    def forward(self, x):
        x = self.inner(x).tanh()
        return self.outer(x + self.around(x)).mean((2, 3))


def chain(*layers):
    return nn.Sequential(*layers, nn.Tanh(), nn.Conv2d(12, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())


WHOLE_GROUPS = {
    "groups": lambda: chain(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 12, 3, groups=4)),
    "several outputs of one input": lambda: chain(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 12, 3, groups=6)),
    "transposed groups": lambda: chain(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.ConvTranspose2d(8, 12, 3, groups=4)),
    "the same channels": Around,
}


@pytest.mark.parametrize("name", WHOLE_GROUPS)
def test_every_weight_that_goes_with_a_channel_counts_once(name):
    torch.manual_seed(0)
    model, images, labels = WHOLE_GROUPS[name]().double(), torch.randn(4, 3, 7, 7).double(), torch.randint(4, (4,))
    criterion = EmpiricalFisherImportance()
    criterion.accumulate(model, [(images, labels)], functional.cross_entropy)
    coupling = Coupling.trace(model, images)
    _, second = loop(model, images, labels)
    for group, size in coupling.sizes.items():
        expected = torch.zeros(size).double()
        for channel in range(size):
            plan = coupling.plan({group: [other for other in range(size) if other != channel]})
            for parameter, cut in coupling.index_map(plan).tensors.items():
                values = second[parameter] * model.get_parameter(parameter).detach().square()
                expected[channel] += values[~cut.mask()].sum()
        torch.testing.assert_close(criterion(coupling.groups_of(model)(group)), expected, rtol=1e-9, atol=0)
