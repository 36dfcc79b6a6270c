"""FedProx: the proximal term, partial work, full models."""

import pytest
import torch
from federated import assigned, begin, context_of, local_of, small_network
from torch import nn
from torch.nn import functional

from hfp.methods import create_method
from hfp.methods.fedprox import Proximal
from hfp.reconstruct import IndexMap
from hfp.training.local_step import LocalData, LocalTraining, train


@pytest.fixture(scope="module")
def context():
    model = small_network()
    return model, context_of(model)


def test_local_steps_minimise_the_loss_and_the_squared_distance_to_the_start():
    torch.manual_seed(0)
    images, labels = torch.randn(12, 5, dtype=torch.float64), torch.randint(3, (12,))
    model, mu = nn.Linear(5, 3).double(), 0.7
    start = [parameter.detach().clone() for parameter in model.parameters()]
    training = LocalTraining(epochs=2, batch_size=4, learning_rate=0.1, momentum=0.5, weight_decay=0.0)
    data = LocalData(images, labels, lambda batch: batch)
    result = train(model, data, training, torch.Generator().manual_seed(7), Proximal(model, mu))

    generator, losses = torch.Generator().manual_seed(7), []
    weight, bias = (tensor.clone() for tensor in start)
    velocity = [torch.zeros_like(weight), torch.zeros_like(bias)]
    for _ in range(2):
        for chosen in torch.randperm(12, generator=generator).split(4):
            x, target = images[chosen], functional.one_hot(labels[chosen], 3).double()
            chance = functional.softmax(x @ weight.T + bias, 1)
            distance = (weight - start[0]).square().sum() + (bias - start[1]).square().sum()
            losses.append(-(target * chance.log()).sum() / 4 + mu / 2 * distance)
            error = (chance - target) / 4
            gradients = [error.T @ x + mu * (weight - start[0]), error.sum(0) + mu * (bias - start[1])]
            velocity = [0.5 * v + g for v, g in zip(velocity, gradients, strict=True)]
            weight, bias = weight - 0.1 * velocity[0], bias - 0.1 * velocity[1]
    torch.testing.assert_close(model.weight.detach(), weight, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(model.bias.detach(), bias, rtol=1e-12, atol=1e-12)
    assert result.loss == pytest.approx(float(sum(losses) / len(losses)), rel=1e-6)


@pytest.mark.parametrize(("partial", "steps"), [(True, [3, 2, 1]), (False, [4, 4, 4])])
def test_weak_clients_run_a_part_of_the_steps_on_the_full_model(context, partial, steps):
    model, context = context
    method = create_method("fedprox", partial=partial)
    state = begin(model, method, context)
    for client, expected in zip(context.clients, steps, strict=True):
        task = assigned(method, context, state, client)
        assert task.index_map == IndexMap.identity(model)
        reply = method.train(local_of(model, context, client), task)
        assert (reply.steps, reply.samples) == (expected, 4 * expected)
        assert reply.training_macs == 3 * reply.forward_macs * 4 * expected
        assert reply.tensors.keys() == state.weights.keys()
