"""One seed gives one run, also where layers draw at random."""

import dataclasses
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from hfp import Experiment, simulate
from hfp.seeds import making_seeded, seeded

SMALL = Experiment(method="fedavg", train_images=60, clients=2, rounds=2, head_start=1.0, personal=1)


class Dropping(nn.Module):
    """A network whose dropout is part of training and of re-estimating batch-norm statistics."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 8, 3), nn.Dropout(0.5), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Dropout(0.5)
        )
        self.head = nn.Linear(8, 10)

    def forward(self, images):
        return self.head(self.features(images).mean((2, 3)))

    def get_classifier(self):
        return self.head


def dropping():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Dropping()


@pytest.mark.parametrize("method", ["fedavg", "ca-hfp", "fjord", "dapperfl"])
def test_a_model_with_dropout_gives_one_run_for_one_seed(method):
    experiment = dataclasses.replace(SMALL, method=method, model=dropping)
    torch.manual_seed(1)
    one = simulate(experiment)
    torch.manual_seed(2)
    other = simulate(experiment)
    for name, tensor in one.global_state.items():
        assert torch.equal(other.global_state[name], tensor)
    assert [record.loss for record in other.history] == [record.loss for record in one.history]
    assert [record.personal for record in other.history] == [record.personal for record in one.history]


def test_dropout_differs_by_seed_round_and_client():
    def drawn(seed, *labels):
        with seeded(torch.device("cpu"), seed, "layers", *labels):
            return nn.functional.dropout(torch.ones(100))

    masks = [drawn(0, 0, 0), drawn(0, 0, 1), drawn(0, 1, 0), drawn(1, 0, 0)]
    assert len({tuple(mask.tolist()) for mask in masks}) == 4
    assert torch.equal(drawn(0, 0, 0), masks[0])


@pytest.mark.parametrize("inside", [lambda: seeded(torch.device("cpu"), 0, "layers"), lambda: making_seeded(0, "all")])
def test_the_global_generators_are_afterwards_what_they_were(inside):
    states = lambda: (torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist())  # noqa: E731
    before = states()
    with inside():
        torch.rand(3), random.random(), np.random.rand()
        assert states() != before
    assert states() == before


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_on_cuda_too():
    device, before = torch.device("cuda"), torch.cuda.get_rng_state()
    with seeded(device, 0, "layers"):
        one = torch.rand(3, device=device)
    with seeded(device, 0, "layers"):
        assert torch.equal(torch.rand(3, device=device), one)
    assert torch.equal(torch.cuda.get_rng_state(), before)


class Skipping(Dropping):
    """A network that skips at random by Python's and NumPy's generators, and draws its first weights from NumPy's."""

    def __init__(self):
        super().__init__()
        self.head.weight.data = torch.tensor(np.random.standard_normal((10, 8)), dtype=torch.float32)

    def forward(self, images):
        scale = random.random() + np.random.rand() if self.training else 1.0
        return super().forward(images * scale)


def test_layers_that_draw_from_python_and_numpy_give_one_run_for_one_seed():
    experiment = dataclasses.replace(SMALL, model=Skipping)
    one, other = simulate(experiment), simulate(experiment)
    assert [record.loss for record in other.history] == [record.loss for record in one.history]


def test_names_that_are_loaded_when_they_are_used_leave_the_random_state_as_it_was():
    draws = "import random, hfp; random.seed(0); first = random.random(); random.seed(0); hfp.prune; hfp.simulate"
    subprocess.run([sys.executable, "-c", f"{draws}; assert random.random() == first"], check=True)
