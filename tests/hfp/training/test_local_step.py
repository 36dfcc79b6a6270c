import copy
import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from hfp.errors import InputError
from hfp.training.local_step import LocalData, LocalTraining, Objective, Predictions, batches, predict, train


def identity(images):
    return images


@given(samples=st.integers(2, 50), size=st.integers(2, 20))
def test_batches_cover_all_samples_but_a_last_single_one(samples, size):
    chosen = torch.cat(list(batches(samples, size, torch.Generator().manual_seed(0))))
    dropped = samples % size == 1
    assert len(chosen) == samples - dropped
    assert len(set(chosen.tolist())) == len(chosen)


def test_training_is_plain_sgd_with_momentum():
    torch.manual_seed(0)
    images, labels = torch.randn(11, 5), torch.randint(3, (11,))
    model = nn.Linear(5, 3)
    weight, bias = model.weight.detach().double().clone(), model.bias.detach().double().clone()
    training = LocalTraining(epochs=2, batch_size=4, learning_rate=0.1, momentum=0.9, weight_decay=0.01)
    data = LocalData(images, labels, identity)
    result = train(model, data, training, torch.Generator().manual_seed(7))

    generator = torch.Generator().manual_seed(7)
    velocity = [torch.zeros_like(weight), torch.zeros_like(bias)]
    total = 0.0
    for _ in range(2):
        for chosen in torch.randperm(11, generator=generator).split(4):
            x, target = images[chosen].double(), functional.one_hot(labels[chosen], 3).double()
            probability = functional.softmax(x @ weight.T + bias, 1)
            total -= float((target * probability.log()).sum())
            error = (probability - target) / len(chosen)
            gradients = [error.T @ x + 0.01 * weight, error.sum(0) + 0.01 * bias]
            velocity = [0.9 * v + g for v, g in zip(velocity, gradients, strict=True)]
            weight, bias = weight - 0.1 * velocity[0], bias - 0.1 * velocity[1]
    torch.testing.assert_close(model.weight.double(), weight, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model.bias.double(), bias, rtol=1e-5, atol=1e-6)
    assert (result.steps, result.samples) == (6, 22)
    assert result.loss == pytest.approx(total / 22)


def test_an_objective_sees_every_gradient_and_a_schedule_says_which_batches():
    class Frozen(Objective):
        def __init__(self):
            self.seen = []

        def loss(self, model, inputs, labels):
            self.seen.append(inputs[:, 0].tolist())
            return super().loss(model, inputs, labels)

        def gradients(self, model):
            assert model.weight.grad.abs().sum() > 0
            model.weight.grad.zero_()

    torch.manual_seed(0)
    data = LocalData(torch.arange(12.0).reshape(6, 2), torch.tensor([0, 1, 0, 1, 0, 1]), identity)
    model, objective = nn.Linear(2, 2), Frozen()
    before = model.weight.detach().clone()
    training = LocalTraining(epochs=9, batch_size=4, learning_rate=0.1, momentum=0.0, weight_decay=0.0)
    schedule = [torch.tensor([5, 0]), torch.tensor([2, 3])]
    result = train(model, data, training, torch.Generator(), objective, schedule)
    assert objective.seen == [[10.0, 0.0], [4.0, 6.0]]
    assert (result.steps, result.samples) == (2, 4)
    assert torch.equal(model.weight, before)


def test_step_size_counts_momentum():
    training = LocalTraining(epochs=1, batch_size=4, learning_rate=0.1, momentum=0.9, weight_decay=0.0)
    assert training.step_size == pytest.approx(1.0)


def test_divergence_is_an_error_that_says_what_to_do():
    model = nn.Linear(4, 2)
    training = LocalTraining(epochs=3, batch_size=4, learning_rate=1e30, momentum=0.0, weight_decay=0.0)
    with pytest.raises(InputError, match="diverged .* use a smaller one"):
        train(model, LocalData(1e20 * torch.randn(8, 4), torch.randint(2, (8,)), identity), training, torch.Generator())


def test_answers_cover_every_sample_once():
    class FirstColumn(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

        def forward(self, x):
            return torch.stack([x[:, 0], -x[:, 0]], 1) * self.scale

    images = torch.tensor([[1.0], [2.0], [-1.0], [3.0], [-2.0]])
    labels = torch.tensor([0, 0, 1, 1, 1])
    data, schedule = (
        LocalData(images, labels, identity),
        [torch.tensor([4, 0]), torch.tensor([3]), torch.tensor([1, 2])],
    )
    found = predict(FirstColumn(), data, schedule, LocalTraining(1, 2, 0.1, 0.0, 0.0))
    assert found.correct.tolist() == [1, 1, 1, 0, 1]
    expected = functional.cross_entropy(torch.cat([images, -images], 1).double(), labels, reduction="none")
    torch.testing.assert_close(found.losses, expected)
    assert found.confusion.tolist() == [[2, 0], [1, 2]]


@given(pairs=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=40))
def test_macro_f1_is_scikit_learns(pairs):
    metrics = pytest.importorskip("sklearn.metrics")
    confusion = torch.zeros(5, 5, dtype=torch.float64)
    for true, answered in pairs:
        confusion[true, answered] += 1
    true, answered = zip(*pairs, strict=True)
    expected = metrics.f1_score(true, answered, average="macro", zero_division=0)
    assert Predictions(torch.ones(1), torch.ones(1), confusion).macro_f1 == pytest.approx(expected)


@pytest.mark.parametrize(("how", "tolerance"), [({"channels_last": True}, 1e-5), ({"amp": True}, 0.02)])
def test_other_layouts_and_precisions_train_the_same_weights_in_float32(how, tolerance):
    torch.manual_seed(0)
    data = LocalData(torch.randn(16, 3, 6, 6), torch.randint(2, (16,)), identity)
    first = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(128, 2))
    second = copy.deepcopy(first)
    plain = LocalTraining(epochs=1, batch_size=4, learning_rate=0.05, momentum=0.9, weight_decay=0.0)
    train(first, data, plain, torch.Generator().manual_seed(7))
    train(second, data, dataclasses.replace(plain, **how), torch.Generator().manual_seed(7))
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert other.dtype == torch.float32
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)
    assert second[0].weight.is_contiguous(memory_format=torch.channels_last) is how.get("channels_last", False)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_rate_factor_takes_the_steps_of_the_smaller_rate(momentum):
    scaled = LocalTraining(2, 4, 0.4, momentum, weight_decay=0.01, rate_factor=0.25)
    plain = LocalTraining(2, 4, 0.1, momentum, weight_decay=0.01)
    assert scaled.step_size == pytest.approx(plain.step_size)
    found = []
    for training in (scaled, plain):
        torch.manual_seed(0)
        model = nn.Linear(3, 2).double()
        random = torch.Generator().manual_seed(1)
        data = LocalData(torch.randn(10, 3, generator=random).double(), torch.arange(10) % 2, lambda x: x)
        train(model, data, training, random)
        found.append(model.weight.detach())
    torch.testing.assert_close(found[0], found[1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("clip_norm", [0.05, 100.0])
def test_long_gradients_are_scaled_down_to_the_norm(clip_norm):
    torch.manual_seed(0)
    model = nn.Linear(3, 2).double()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random = torch.Generator().manual_seed(1)
    data = LocalData(torch.randn(4, 3, generator=random).double(), torch.arange(4) % 2, lambda x: x)
    loss = functional.cross_entropy(model(data.images), data.labels)
    gradients = torch.autograd.grad(loss, [model.weight, model.bias])
    norm = math.sqrt(sum(float(gradient.square().sum()) for gradient in gradients))
    train(model, data, LocalTraining(1, 4, 1.0, 0.0, 0.0, clip_norm=clip_norm), random)
    for (name, tensor), gradient in zip(model.state_dict().items(), gradients, strict=True):
        expected = before[name] - gradient * min(1.0, clip_norm / norm)
        torch.testing.assert_close(tensor, expected, rtol=1e-5, atol=1e-7)
