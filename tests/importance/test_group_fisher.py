"""Group Fisher against its definition: one sample at a time, a gate per channel, float64."""

import pytest
import torch
from criteria_networks import data, groups, make
from torch import nn
from torch.nn import functional

from hfp.importance import GroupFisherImportance
from hfp.importance.groups import members


def loss_fn(output, target):
    return functional.cross_entropy(output, target)


def gated(model, group, gate):
    """Hooks that scale the group's channels by the gate wherever a convolution or linear layer reads them."""
    handles = []
    for member in members(group):
        if member.direction == "in":
            dim = -1 if isinstance(member.layer, nn.Linear) else 1

            def scale(module, args, member=member, dim=dim):
                full = torch.ones(args[0].shape[dim], dtype=gate.dtype).index_put(
                    (member.indices,), gate[member.positions]
                )
                return (
                    args[0]
                    * full.view([-1 if d % args[0].dim() == dim % args[0].dim() else 1 for d in range(args[0].dim())]),
                )

            handles.append(member.layer.register_forward_pre_hook(scale))
    return handles


def reference(model, group, images, labels):
    """v by autograd with respect to explicit gates, sample by sample."""
    rows = []
    for image, label in zip(images, labels, strict=True):
        gate = torch.ones(len(group[0].idxs), dtype=torch.float64, requires_grad=True)
        handles = gated(model, group, gate)
        loss = loss_fn(model(image[None]), label[None])
        rows.append(torch.autograd.grad(loss, gate)[0])
        for handle in handles:
            handle.remove()
    return torch.stack(rows)


@pytest.mark.parametrize("name", ["residual", "depthwise", "flat"])
def test_gate_gradients_equal_the_definition(name):
    model, (images, labels) = make(name), data()
    criterion = GroupFisherImportance()
    criterion.accumulate(model, [(images[:4], labels[:4]), (images[4:], labels[4:])], loss_fn)
    for group in groups(model).values():
        expected = reference(model, group, images, labels)
        torch.testing.assert_close(criterion.gate_gradients(group), expected, rtol=1e-10, atol=1e-14)
        torch.testing.assert_close(criterion(group), expected.square().mean(0) / 2, rtol=1e-10, atol=1e-14)
