"""The calibrated loss: its value, what it does to classes that a client lacks, and who minimises it."""

import math

import pytest
import torch
from federated import CLIENTS, assigned, begin, context_of, local_of, small_network
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from hfp.errors import InputError
from hfp.methods import create_method
from hfp.methods.blocks.calibration import Calibrated, label_offset
from hfp.training.local_step import LocalTraining, Objective, schedule_of

OWN = torch.tensor([0, 0, 0, 2, 2, 3])


def of(labels, strength, dtype=torch.float64, classes=5):
    return Calibrated(label_offset(labels, classes, strength).to(dtype))


def scores(seed=0):
    return torch.randn(6, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("strength", [0.25, 1.0])
def test_the_loss_is_cross_entropy_of_scores_and_the_logs_of_shares(strength):
    found = of(OWN, strength).loss(nn.Identity(), scores(), OWN)
    shares = [4 / 11, 1 / 11, 3 / 11, 2 / 11, 1 / 11]
    expected = 0.0
    for row, label in zip(scores().tolist(), OWN.tolist(), strict=True):
        raised = [score + strength * math.log(share) for score, share in zip(row, shares, strict=True)]
        expected += (math.log(sum(map(math.exp, raised))) - raised[label]) / len(OWN)
    assert float(found) == pytest.approx(expected, rel=1e-12)


def test_a_class_that_the_client_lacks_is_pushed_down_less_and_a_frequent_one_more():
    def pushes(objective):
        inputs = scores().requires_grad_()
        objective.loss(nn.Identity(), inputs, OWN).backward()
        return inputs.grad.sum(0)

    plain, calibrated = pushes(Objective()), pushes(of(OWN, 1.0))
    assert 0 < calibrated[1] < plain[1]
    assert 0 < calibrated[4] < plain[4]
    assert calibrated[0] > plain[0]


def test_half_precision_scores_keep_a_precise_offset():
    loss = of(OWN, 1.0, torch.float32).loss(nn.Identity(), scores().bfloat16(), OWN)
    assert loss.dtype == torch.float32


@given(samples=st.integers(1, 70), batch=st.integers(2, 9), epochs=st.integers(1, 3))
def test_steps_are_those_that_training_takes(samples, batch, epochs):
    training = LocalTraining(epochs, batch, learning_rate=0.1, momentum=0.0, weight_decay=0.0)
    assert training.steps(samples) == len(schedule_of(samples, training, torch.Generator()))


@pytest.mark.parametrize("name", ["ca-hfp", "fedavgm"])
@pytest.mark.parametrize(("epochs", "strength"), [(1, 0.5), (2, 1.0), (5, 1.0)])
def test_clients_calibrate_the_more_the_longer_they_train(name, epochs, strength):
    model = small_network()
    context = context_of(model)
    method = create_method(name, calibration=0.125)
    task = assigned(method, context, begin(model, method, context), CLIENTS[1])
    local = local_of(model, context, CLIENTS[1], classes=(1, 2), epochs=epochs)
    objective = method.objective(local, task, model)
    own = of(local.data.labels, strength, classes=10)
    at = torch.randn(16, 10, dtype=torch.float64)
    assert torch.equal(*(each.loss(nn.Identity(), at, local.data.labels) for each in (objective, own)))


@pytest.mark.parametrize(("name", "options"), [("ca-hfp", {"calibration": 0}), ("ca-hfp-paper", {}), ("fedavgm", {})])
def test_without_calibration_it_is_cross_entropy(name, options):
    model = small_network()
    context = context_of(model)
    method = create_method(name, **options)
    task = assigned(method, context, begin(model, method, context), CLIENTS[0])
    assert type(method.objective(local_of(model, context, CLIENTS[0]), task, model)) is Objective


@pytest.mark.parametrize("name", ["ca-hfp", "fedavgm"])
@pytest.mark.parametrize("calibration", [-0.1, math.inf, math.nan])
def test_a_step_adds_a_finite_share(name, calibration):
    with pytest.raises(InputError, match=r"calibration of \S+ must be a finite number of at least 0; found"):
        create_method(name, calibration=calibration)
