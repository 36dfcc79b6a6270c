"""Clients side by side: the same results, in the same order, whatever happens beside them."""

import dataclasses
import threading

import pytest
import torch

from hfp import Experiment
from hfp.errors import InputError
from hfp.federation.fleet import InProcess
from hfp.federation.lanes import Lanes, Turns
from hfp.federation.rounds import Course
from hfp.federation.setup import set_up

SMALL = Experiment(train_images=60, clients=5, rounds=2, head_start=1.0, rank=2, batch_size=8, evaluate=9, augment=True)


def run_of(experiment, lanes=None, replay=True):
    federation = set_up(experiment)
    fleet = InProcess(federation)
    if lanes is not None:
        fleet._lanes = Lanes(federation, lanes, replay=replay)
    course = Course(federation, fleet)
    return [course.advance() for _ in range(experiment.rounds)]


@pytest.mark.parametrize(("method", "lanes"), [("ca-hfp", 1), ("dapperfl", 3), ("ca-hfp", 8)])
def test_the_number_of_lanes_changes_nothing(method, lanes):
    experiment = dataclasses.replace(SMALL, method=method)
    for one, other in zip(run_of(experiment), run_of(experiment, lanes), strict=True):
        assert [dataclasses.asdict(client) for client in one.record.clients] == [
            dataclasses.asdict(client) for client in other.record.clients
        ]
        for name, tensor in one.state.weights.items():
            assert torch.equal(tensor, other.state.weights[name]), name


def test_an_error_in_a_lane_reaches_the_server_and_ends_the_others():
    before = threading.active_count()
    with pytest.raises(InputError, match="diverged"):
        run_of(dataclasses.replace(SMALL, learning_rate=1e6, weight_decay=1e6, epochs=5), lanes=3)
    assert threading.active_count() == before


def test_a_server_that_stops_in_the_middle_ends_the_lanes():
    federation = set_up(SMALL)
    before = threading.active_count()
    lanes, course = Lanes(federation, 2, replay=False), Course(federation)
    some = lanes.train(0, federation.context.clients, lambda client: course._exchange.task(course.state, client))
    next(some)
    some.close()
    assert threading.active_count() == before


def test_only_one_thread_has_the_turn():
    turns, inside, most = Turns(), 0, 0

    def work():
        nonlocal inside, most
        with turns.taken():
            for _ in range(50):
                inside += 1
                most = max(most, inside)
                inside -= 1
                with turns.passed():
                    pass

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
