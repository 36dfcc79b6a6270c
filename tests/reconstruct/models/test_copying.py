"""Copies of modules are those that `copy.deepcopy` makes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from hfp.reconstruct.models.copying import copied
from hfp.reconstruct.models.twin import computed

POINTERS = ("call", "_flat_weight_refs")  # attributes whose texts hold addresses


class Special(nn.Linear):
    """A layer that says itself how it is copied."""

    def __deepcopy__(self, memo):
        found = Special(self.in_features, self.out_features)
        found.load_state_dict(self.state_dict())
        found.made_by_itself = True
        return found


class Odd(nn.Module):
    """Attributes of many kinds: shared layers and lists, tuples, tensors, a method."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Linear(4, 4), nn.BatchNorm1d(4)
        self.again = self.first
        self.notes = {"shared": [1, 2], "empty": {}}
        self.same_notes = self.notes
        self.sizes, self.parts = (1, (2, 3)), ([4], 5)
        self.plain = torch.ones(3)
        self.call = self.first.forward
        self.register_buffer("gone", None)
        self.register_buffer("passing", torch.zeros(2), persistent=False)

    def forward(self, x):
        return self.norm(self.call(x)) + self.again(x)


def described(module):
    """Everything about a module but the identity of its parts."""
    return [
        (name, type(part), {key: repr(value) for key, value in vars(part).items() if key not in POINTERS})
        for name, part in module.named_modules(remove_duplicate=False)
    ]


def layers():
    return nn.Sequential(nn.LSTM(3, 4), nn.MultiheadAttention(4, 2), nn.Conv2d(3, 4, 1))


def changeable(module):
    """The identities of all parts of a module that can change."""
    values = [value for part in module.modules() for value in (part, *vars(part).values(), *part.parameters())]
    return {id(value) for value in values if isinstance(value, dict | set | list | torch.Tensor | nn.Module)}


@pytest.mark.parametrize("make", (Odd, layers))
def test_a_copy_is_that_of_deepcopy(make):
    module = make().eval()
    assert described(copied(module, {})) == described(copy.deepcopy(module)) == described(module)


def test_nothing_that_can_change_is_shared_with_the_original():
    module = Odd()
    found = copied(module, {})
    assert not changeable(module) & changeable(found)
    assert found.parts[0] is not module.parts[0]


def test_what_is_shared_inside_is_shared_in_the_copy():
    found = copied(Odd(), {})
    assert found.again is found.first
    assert found.same_notes is found.notes
    assert found.call.__self__ is found.first


def test_what_the_memo_names_stands_in_the_copy():
    module, weight = nn.Linear(2, 2), nn.Parameter(torch.zeros(1, 2))
    assert copied(module, {id(module.weight): weight}).weight is weight


def test_a_layer_that_copies_itself_does_so():
    model = nn.Sequential(Special(2, 3), nn.ReLU())
    found = copied(model, {})
    assert found[0].made_by_itself
    assert torch.equal(found[0].weight, model[0].weight)


def test_parametrised_layers_are_copied_by_pytorch():
    model = nn.Sequential(weight_norm(nn.Linear(3, 4)), nn.Tanh())
    found, x = copied(model, {}), torch.randn(2, 3)
    assert torch.equal(found(x), model(x))
    assert found[0].parametrizations.weight.original0 is not model[0].parametrizations.weight.original0


def test_hooks_are_copied():
    model, seen = nn.Sequential(nn.Linear(2, 2)), []
    model[0].register_forward_hook(lambda *_: seen.append(1))
    copied(model, {})(torch.zeros(1, 2))
    assert seen == [1]


@pytest.mark.parametrize("kind", [list, tuple])
def test_computed_tensors_that_a_module_keeps_together_are_found(kind):
    layer = nn.Linear(2, 2)
    layer.kept = kind([layer.weight * 2, layer.bias * 2])
    assert computed(layer).keys() == {id(tensor) for tensor in layer.kept}
