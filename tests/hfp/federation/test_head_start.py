"""Longer first rounds: how long they are, and that every method's clients train exactly that long."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hfp.federation.client_runner import Clients
from hfp.federation.experiment import Experiment
from hfp.federation.setup import set_up
from hfp.seeds import generator

SMALL = Experiment(method="fedavg", model="vgg-small", clients=2, train_images=80, head_start=3.0, head_start_decay=0.5)


def test_the_default_first_rounds():
    epochs = [Experiment().epochs_in(round) for round in range(20)]
    assert epochs == [10, 8, 7, 6, 5, 4, 4, 3, 3, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1]
    assert [Experiment(epochs=3).epochs_in(round) for round in range(20)] == [3 * each for each in epochs]


@given(st.floats(1, 1e6, exclude_min=True), st.floats(0, 1, exclude_max=True), st.integers(1, 4), st.integers(1, 20))
def test_rounds_only_get_shorter_and_never_shorter_than_usual(head_start, decay, usual, rounds):
    experiment = Experiment(epochs=usual, head_start=head_start, head_start_decay=decay)
    epochs = [experiment.epochs_in(round) for round in range(rounds)]
    assert epochs == sorted(epochs, reverse=True)
    assert epochs[-1] >= usual
    assert all(each % usual == 0 for each in epochs)
    assert abs(epochs[0] - usual * head_start) <= usual / 2


@pytest.mark.parametrize("limit", [{"deadline": 60.0}, {"budget": {"seconds": 60.0}}])
def test_rounds_that_are_limited_in_time_are_all_of_the_usual_length(limit):
    assert {Experiment(epochs=2, **limit).epochs_in(round) for round in range(20)} == {2}


def test_a_limit_of_bytes_is_none_of_time():
    assert Experiment(budget={"bytes": 1e9}).epochs_in(0) == 10


@pytest.mark.parametrize("name", ["fedavg", "fedavgm", "ca-hfp", "heterofl", "fedrolex", "fjord", "fedmp", "dapperfl"])
def test_every_methods_clients_train_so_many_epochs(name):
    federation = set_up(dataclasses.replace(SMALL, method=name))
    method, context = federation.method, federation.context
    state, client = method.start(context, federation.initial), context.clients[0]
    a_pass = math.ceil(client.samples / federation.experiment.batch_size)
    for round, epochs in enumerate((3, 2, 1)):
        now = dataclasses.replace(state, round=round)
        task = method.send(context, now, client, method.plan(context, now, client))
        reply = Clients(federation).train(round, client, task)
        assert (reply.steps, reply.samples) == (epochs * a_pass, epochs * client.samples)


def test_the_epochs_go_on_from_one_another_with_an_order_of_their_own_each():
    federation = set_up(SMALL)
    method, context = federation.method, federation.context
    state, client = method.start(context, federation.initial), context.clients[0]
    task = method.send(context, state, client, method.plan(context, state, client))
    reply = Clients(federation).train(0, client, task)
    assert reply.training_macs == 3 * reply.forward_macs * 3 * client.samples

    data, training = federation.shards[0], federation.training
    random = generator(federation.experiment.seed, "batches", 0, 0)
    federation.model.load_state_dict(dict(federation.initial))
    model = federation.model.train()
    optimizer = torch.optim.SGD(model.parameters(), training.learning_rate, momentum=training.momentum)
    for _ in range(3):
        for chosen in torch.randperm(client.samples, generator=random).split(training.batch_size):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(
                model(data.normalise(data.images[chosen])), data.labels[chosen]
            ).backward()
            optimizer.step()
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(reply.tensors[name], tensor)
