import random

import numpy as np
import pytest
import torch
from federated import assigned, begin, context_of, local_of, small_network
from torch import nn

from hfp.costs.memory import PeakBytesCounter
from hfp.methods import create_method


def test_a_steps_memory_is_state_and_saved_activations():
    model = nn.Sequential(nn.Linear(6, 5, bias=False), nn.ReLU(), nn.Linear(5, 3))
    parameters = 6 * 5 + 5 * 3 + 3
    saved = 6 + 5  # the input of the first layer; the rectified output, which two layers save
    for batch in (1, 7):
        assert PeakBytesCounter(torch.zeros(1, 6))(model, batch) == 4 * (3 * parameters + saved * batch)


def test_counting_leaves_the_model_and_the_random_state_alone():
    class Shaken(nn.Linear):
        def forward(self, x):
            return super().forward(x) * random.random() * np.random.rand()

    model = nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(), Shaken(4, 2)).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[2]
    PeakBytesCounter(torch.ones(1, 4))(model, 8)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (random.getstate(), np.random.get_state()[2]) == states[1:]
    assert not model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("name", ["ca-hfp", "heterofl", "dapperfl", "fedprox", "prunefl"])
def test_only_methods_that_train_submodels_save_memory(name):
    model = small_network()
    context = context_of(model)
    method = create_method(name, **({"passes": 1, "limit": 1} if name == "prunefl" else {}))
    state, client = begin(model, method, context), context.clients[1]
    local = local_of(model, context, client)
    full = local.peak(model)
    reply = method.train(local, assigned(method, context, state, client))
    if name in ("ca-hfp", "heterofl"):
        assert reply.peak_bytes < 0.6 * full
    else:
        assert full <= reply.peak_bytes < 1.3 * full
