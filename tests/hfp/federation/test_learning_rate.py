"""Learning rates that change from round to round, and clipped gradients, for every method alike."""

import dataclasses
import math

import pytest
import torch

from hfp.federation.client_runner import Clients
from hfp.federation.exchange import Exchange
from hfp.federation.experiment import Experiment
from hfp.federation.fleet import TaskResult
from hfp.federation.setup import set_up

SMALL = Experiment(method="fedavg", model="vgg-small", clients=2, train_images=60, head_start=1.0, rounds=6)


def test_without_a_schedule_nothing_is_scaled():
    assert SMALL.rate_factor(3) is None
    assert set_up(SMALL).training_in(3).rate_factor is None


def test_a_cosine_starts_at_the_rate_and_falls_along_half_a_wave():
    cosine = Experiment(rounds=8, learning_rate_schedule="cosine")
    factors = [cosine.rate_factor(round) for round in range(8)]
    assert factors[0] == 1
    assert factors[4] == pytest.approx(0.5)
    assert factors == sorted(factors, reverse=True)
    assert factors[-1] > 0
    assert factors[2] == pytest.approx((1 + math.cos(math.pi / 4)) / 2)


def test_steps_are_tenths_at_each_third_of_the_rounds():
    steps = Experiment(rounds=6, learning_rate_schedule="steps")
    assert [steps.rate_factor(round) for round in range(6)] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


def test_a_decay_multiplies_whatever_the_schedule_gives():
    decayed = Experiment(rounds=4, learning_rate_decay=0.5)
    assert [decayed.rate_factor(round) for round in range(4)] == [1, 0.5, 0.25, 0.125]
    both = dataclasses.replace(decayed, learning_rate_schedule="cosine")
    assert both.rate_factor(2) == pytest.approx(0.25 * 0.5)


def test_the_server_knows_the_step_of_the_round():
    federation = set_up(dataclasses.replace(SMALL, learning_rate=0.1, momentum=0.5, learning_rate_decay=0.5))
    method, context = federation.method, federation.context
    state, client = method.start(context, federation.initial), context.clients[0]
    task = method.send(context, state, client, method.plan(context, state, client))
    reply = Clients(federation).train(0, client, task)
    exchange = Exchange(federation)
    sizes = [exchange.update(round, TaskResult(client, task, 0, reply=reply)).step_size for round in range(3)]
    assert sizes == pytest.approx([0.2, 0.1, 0.05])


def test_a_client_trains_at_the_rate_of_its_round():
    scheduled = set_up(dataclasses.replace(SMALL, learning_rate=0.2, learning_rate_decay=0.5, weight_decay=0.01))
    plain = set_up(dataclasses.replace(SMALL, learning_rate=0.05, weight_decay=0.01))
    method, context = plain.method, plain.context
    state, client = method.start(context, plain.initial), context.clients[0]
    task = method.send(context, state, client, method.plan(context, state, client))
    found, expected = (Clients(federation).train(2, client, task).tensors for federation in (scheduled, plain))
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-5)
    assert any((tensor - task.tensors[name]).abs().max() > 1e-3 for name, tensor in expected.items())


@pytest.mark.parametrize("method", ["fedavg", "heterofl", "fedrolex"])
def test_every_method_clips_where_the_experiment_says_so_and_else_never(method):
    experiment = dataclasses.replace(SMALL, method=method)
    assert set_up(experiment).training.clip_norm == 0
    assert set_up(dataclasses.replace(experiment, clip_norm=2.5)).training.clip_norm == 2.5
