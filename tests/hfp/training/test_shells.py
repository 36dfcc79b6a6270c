"""Models that are used again are as good as new ones."""

import pytest
import torch
from torch import nn

from hfp.models import classifier_of, create_model
from hfp.reconstruct import Coupling, IndexMap, MapError, compact_model
from hfp.training.local_step import LocalData, LocalTraining, Objective
from hfp.training.shells import Replay, Shells

DEVICE = torch.device("cpu")


@pytest.fixture(scope="module")
def parent():
    torch.manual_seed(0)
    return create_model("resnet8", in_channels=1, width=0.5)


@pytest.fixture(scope="module")
def coupling(parent):
    return Coupling.trace(parent, torch.zeros(2, 1, 8, 8), [classifier_of(parent)])


def half(coupling, seed):
    random = torch.Generator().manual_seed(seed)
    return coupling.index_map(
        coupling.plan(
            {
                name: torch.randperm(size, generator=random)[: size // 2].sort().values
                for name, size in coupling.sizes.items()
            }
        )
    )


def shaken(parent, seed):
    random = torch.Generator().manual_seed(seed)
    return {
        name: tensor + torch.rand(tensor.shape, generator=random).to(tensor)
        for name, tensor in parent.state_dict().items()
    }


def assert_same_model(found, expected):
    for (name, tensor), (other_name, other) in zip(
        found.state_dict().items(), expected.state_dict().items(), strict=True
    ):
        assert name == other_name
        assert torch.equal(tensor, other), name
    images = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(5))
    assert found.training == expected.training
    assert torch.equal(found(images), expected(images))


def test_a_filled_shell_is_a_new_compact_model(parent, coupling):
    shells, models = Shells(parent, DEVICE), []
    for seed in range(3):
        index_map = half(coupling, seed)
        state = index_map.restrict(shaken(parent, seed))
        with shells.lent() as lease:
            model = lease.build(index_map, state)
            assert_same_model(model, compact_model(parent, index_map, state))
            model.eval()
            model.classifier.register_forward_hook(lambda *_: torch.zeros(3, 10))
            for parameter in model.parameters():
                parameter.grad = torch.ones_like(parameter)
        models.append(model)
    assert models[0] is models[1] is models[2]
    with shells.lent() as lease:
        again = lease.build(index_map, state)
        assert all(parameter.grad is None for parameter in again.parameters())


def test_what_is_lent_is_not_lent_again_before_it_is_back(parent, coupling):
    shells, index_map = Shells(parent, DEVICE), half(coupling, 0)
    state = index_map.restrict(parent.state_dict())
    with shells.lent() as first, shells.lent() as second:
        one, other, third = first.build(index_map, state), first.build(index_map, state), second.build(index_map, state)
        assert len({id(one), id(other), id(third)}) == 3
        assert first.shell(one).model is one
        assert second.shell(one) is None
    with shells.lent() as lease:
        assert lease.build(index_map, state) in (one, other, third)
        assert lease.build(IndexMap.identity(parent), parent.state_dict()) not in (one, other, third)


def test_no_more_shells_wait_than_they_may(parent, coupling):
    shells, index_map = Shells(parent, DEVICE, most=2), half(coupling, 0)
    state = index_map.restrict(parent.state_dict())
    with shells.lent() as lease:
        made = [lease.build(index_map, state) for _ in range(4)]
    with shells.lent() as lease:
        again = [lease.build(index_map, state) for _ in range(4)]
    assert sum(model in made for model in again) == 2


def test_a_shell_refuses_another_state_and_knows_of_hooks(parent, coupling):
    shells, index_map = Shells(parent, DEVICE), half(coupling, 0)
    state = index_map.restrict(parent.state_dict())
    with shells.lent() as lease:
        model = lease.build(index_map, state)
        assert not lease.shell(model).has_new_hooks
        model.classifier.register_forward_pre_hook(lambda *_: None)
        assert lease.shell(model).has_new_hooks
    with shells.lent() as lease, pytest.raises(MapError, match="expected the compact shape"):
        lease.build(index_map, parent.state_dict())


def test_what_a_method_freezes_is_frozen_for_its_client_alone(parent, coupling):
    shells, index_map = Shells(parent, DEVICE), half(coupling, 0)
    state, training = index_map.restrict(parent.state_dict()), LocalTraining(1, 2, 0.1, 0.9, 0.0)
    data = LocalData(torch.zeros(2, 1, 8, 8), torch.zeros(2, dtype=torch.int64), torch.Tensor.float)
    steps = []
    for freezes in (True, False):
        with shells.lent() as lease:
            model = lease.build(index_map, state)
            assert all(parameter.requires_grad for parameter in model.parameters())
            model.blocks.requires_grad_(not freezes)
            steps.append(Replay(DEVICE).step(lease.shell(model), data, training, Objective(), [torch.arange(2)]))
    assert steps[0] is not steps[1]


def test_buffers_outside_the_state_are_filled_too():
    class Shifted(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 4)
            self.register_buffer("shift", torch.arange(4.0), persistent=False)

        def forward(self, x):
            return self.layer(x) + self.shift

    parent = Shifted()
    shells, index_map = Shells(parent, DEVICE), IndexMap.identity(parent)
    with shells.lent() as lease:
        lease.build(index_map, parent.state_dict()).shift.zero_()
    with shells.lent() as lease:
        assert torch.equal(lease.build(index_map, parent.state_dict()).shift, parent.shift)


def test_a_model_whose_tensors_were_replaced_is_filled(parent, coupling):
    shells, index_map = Shells(parent, DEVICE), half(coupling, 0)
    state = index_map.restrict(shaken(parent, 1))
    for _ in range(2):
        with shells.lent() as lease:
            model = lease.build(index_map, state)
            assert_same_model(model, compact_model(parent, index_map, state))
            for parameter in model.parameters():
                parameter.data = torch.zeros_like(parameter)


def test_tied_models_are_made_anew():
    parent = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    parent[1].weight = parent[0].weight
    shells, index_map = Shells(parent, DEVICE), IndexMap.identity(parent)
    with shells.lent() as lease:
        first = lease.build(index_map, parent.state_dict())
    with shells.lent() as lease:
        assert lease.build(index_map, parent.state_dict()) is not first
