"""What a coupled group is made of: the layers its channels run through, and what ties them."""

from __future__ import annotations

import torch
from torch import nn

from hfp.reconstruct import Coupling
from hfp.reconstruct.coupling.members import Member


class Residual(nn.Module):
    """A shortcut around a convolution with a norm; a learnt scale beside the layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.scale = nn.Parameter(torch.ones(1, 8, 1, 1))
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        x = self.first(x)
        return self.head((x + self.second(self.norm(x)) * self.scale).mean((2, 3)))


class Heads(nn.Module):
    """Four attention heads of two channels, whose queries and keys come from layers of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x):
        q, k, v = (layer(x).unflatten(-1, (-1, 2)).transpose(1, 2) for layer in (self.query, self.key, self.value))
        return self.out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def test_a_shortcut_ties_the_layers_that_write_to_it():
    coupling = Coupling.trace(Residual(), torch.randn(2, 3, 6, 6))
    assert set(coupling.members("first")) == {
        Member("first", "writes", 8, 8),
        Member("norm", "carries", 8, 8),
        Member("second", "reads", 8, 8),
        Member("second", "writes", 8, 8),
        Member("scale", "carries", 8, 8),
        Member("head", "reads", 8, 8),
    }
    assert "add in the model" in coupling.ties("first")


def test_channels_that_nothing_else_shares_have_no_ties():
    coupling = Coupling.trace(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)), torch.randn(2, 4))
    assert coupling.ties("0") == ()


def test_a_head_takes_its_part_of_all_three_projections_along():
    coupling = Coupling.trace(Heads(), torch.randn(2, 5, 8))
    (name,) = coupling.names
    assert coupling.sizes[name] == 4
    found = {(member.layer, member.role): member.indices for member in coupling.members(name)}
    assert found == {("query", "writes"): 8, ("key", "writes"): 8, ("value", "writes"): 8, ("out", "reads"): 8}
    assert coupling.ties(name) != ()
