"""Longer first rounds: how long they are, and that a client trains exactly that long."""

import dataclasses

import pytest
import torch
from federated import assigned, begin, local_of, setting_of, small_network
from hypothesis import given
from hypothesis import strategies as st

from hfp.errors import InputError
from hfp.experiment import Experiment
from hfp.federation import set_up
from hfp.methods import create_method

NAMES = ("ca-hfp", "fedavgm")


@pytest.fixture(scope="module")
def setting():
    model = small_network()
    return model, setting_of(model)


def at(state, round):
    return dataclasses.replace(state, round=round)


@pytest.mark.parametrize("name", NAMES)
def test_a_round_is_trained_as_so_many_times_the_usual_epochs_one_after_the_other(setting, name):
    model, setting = setting
    method, client = create_method(name, head_start=3.0, head_start_decay=0.7), setting.clients[1]
    for round, times in enumerate((3, 2, 1)):
        task = assigned(method, setting, at(begin(model, method, setting), round), client)
        local = local_of(model, setting, client, round=round, epochs=2)
        reply = method.train(local, task)
        by_hand = local_of(model, setting, client, round=round, epochs=2 * times)
        expected = by_hand.build(task)
        result = by_hand.fit(expected)
        assert reply.steps == result.steps == 4 * 2 * times
        assert reply.samples == 16 * 2 * times
        assert reply.training_macs == 3 * reply.forward_macs * reply.samples
        for key, tensor in expected.state_dict().items():
            assert torch.equal(reply.tensors[key], tensor)


@given(st.floats(1, 1e6), st.floats(0, 1, exclude_max=True), st.integers(1, 20))
def test_rounds_only_get_shorter_and_never_shorter_than_usual(setting, head_start, decay, rounds):
    model, setting = setting
    method = create_method("ca-hfp", head_start=head_start, head_start_decay=decay)
    start = begin(model, method, setting)
    times = [method.times(setting, at(start, each)) for each in range(rounds)]
    assert times == sorted(times, reverse=True)
    assert times[-1] >= 1
    assert abs(times[0] - head_start) <= 0.5


@pytest.mark.parametrize(
    "limit, timed",
    [
        ({"deadline": 60.0}, True),
        ({"budget": {"seconds": 60.0}}, True),
        ({"budget": {"bytes": 1e9}}, False),
        ({}, False),
    ],
)
def test_rounds_that_are_limited_in_time_are_all_of_the_usual_length(limit, timed):
    federation = set_up(Experiment(method="ca-hfp", dataset="digits", model="resnet8", clients=2, **limit))
    assert federation.setting.timed == timed
    start = federation.method.start(federation.setting, federation.initial)
    assert federation.method.times(federation.setting, start) == (1 if timed else 10)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "options, message",
    [
        ({"head_start": 0.5}, "head_start must be a finite number of at least 1; found 0.5"),
        ({"head_start": float("inf")}, "head_start must be a finite number of at least 1; found inf"),
        ({"head_start_decay": 1.0}, r"head_start_decay must be in \[0, 1\); found 1.0"),
    ],
)
def test_options_out_of_range_are_refused(name, options, message):
    with pytest.raises(InputError, match=message):
        create_method(name, **options)


def test_without_one_a_task_is_what_it_was(setting):
    model, setting = setting
    for name in NAMES:
        method = create_method(name, head_start=1.0)
        assert assigned(method, setting, begin(model, method, setting), setting.clients[0]).values == {}
