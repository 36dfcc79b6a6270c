"""Observers are told what happens, and what they measure becomes part of the record."""

import dataclasses
import json
import math

import pytest
import torch

from hfp import Experiment, InputError, Observer, simulate
from hfp.federation.fleet import InProcess
from hfp.federation.rounds import Course
from hfp.federation.setup import set_up
from hfp.finite import finite

SMALL = Experiment(method="fedavg", train_images=40, clients=2, rounds=2, head_start=1.0, batch_norm="aggregate")


class Notes(Observer):
    """Writes down what it is told."""

    def __init__(self, **figures):
        self.notes, self._figures = [], figures

    def run_began(self, federation, history):
        self.notes.append(("run began", len(history)))

    def round_began(self, state):
        self.notes.append(("round began", state.round))

    def update_came(self, state, update):
        self.notes.append(("update", update.client.index))

    def client_done(self, record):
        self.notes.append(("client", record.client))

    def figures(self, outcome):
        self.notes.append(("figures", outcome.record.round))
        return self._figures

    def round_ended(self, outcome):
        self.notes.append(("round ended", outcome.record.round))

    def state_settled(self, run_state):
        self.notes.append(("settled", len(run_state.history)))

    def run_ended(self, run, finished):
        self.notes.append(("run ended", len(run.history), finished))


def one_round(number):
    clients = [note for client in (0, 1) for note in (("update", client), ("client", client))]
    ends = [(name, number) for name in ("figures", "round ended", "settled")]
    return [("round began", number - 1), *clients, *ends]


def test_observers_are_told_everything_in_order():
    notes, outcomes = Notes(), []
    simulate(SMALL, outcomes.append, observers=[notes])
    assert notes.notes == [("run began", 0), *one_round(1), *one_round(2), ("run ended", 2, True)]
    assert [outcome.record.round for outcome in outcomes] == [1, 2]


def test_an_interrupted_run_is_told_as_unfinished():
    class Stops(Observer):
        def round_ended(self, outcome):
            raise KeyboardInterrupt

    notes = Notes()
    with pytest.raises(KeyboardInterrupt):
        simulate(SMALL, observers=[notes, Stops()])
    assert notes.notes[-2:] == [("settled", 1), ("run ended", 1, False)]


def test_watching_changes_nothing():
    watched, alone = simulate(SMALL, observers=[Notes(mine=1)]), simulate(SMALL)
    for name, tensor in alone.global_state.items():
        assert torch.equal(watched.global_state[name], tensor)


def test_figures_of_observers_stand_in_the_record():
    run = simulate(SMALL, observers=[Notes(mine={"a": [1, math.nan]})])
    document = json.loads(json.dumps(run.history[0].as_dict(), allow_nan=False))
    assert document["mine"] == {"a": [1, None]}
    assert list(document)[-2:] == ["mine", "clients"]


@pytest.mark.parametrize(
    ("observers", "message"),
    [
        ([Notes(mine=torch.zeros(1))], "figure 'mine' must be of numbers, text, lists and mappings"),
        ([Notes(mine=1), Notes(mine=2)], "Notes 2 gives a figure 'mine', which another observer of the run gives too"),
        ([Notes(accuracy=1)], "figure can't be called 'accuracy'"),
    ],
)
def test_figures_that_can_not_stand_in_a_record_are_refused(observers, message):
    with pytest.raises(InputError, match=message):
        simulate(SMALL, observers=observers)


def test_what_json_has_no_number_for_is_none():
    assert finite({"a": (math.inf, 1.5), "b": [{"c": -math.inf}], "d": "nan"}) == {
        "a": [None, 1.5], "b": [{"c": None}], "d": "nan",
    }  # fmt: skip


class Diverging(InProcess):
    """A fleet in which some clients train at a hopeless learning rate."""

    clients = (1,)

    def train(self, round, clients, write):
        for client in clients:
            federation = self._clients._federation
            rate = 1e30 if client.index in self.clients else 0.05
            training = dataclasses.replace(federation.training, learning_rate=rate)
            self._clients._federation = dataclasses.replace(federation, training=training)
            yield from super().train(round, [client], write)


@pytest.mark.parametrize("method", ["ca-hfp", "fedavg", "fjord", "prunefl"])
def test_a_client_that_diverges_has_failed_and_the_round_goes_on(method):
    options = {"passes": 1, "limit": 1} if method == "prunefl" else {}
    experiment = dataclasses.replace(SMALL, method=method, clients=3, train_images=90, batch_size=8, options=options)
    federation = set_up(experiment)
    course = Course(federation, Diverging(federation))
    records = [course.advance().record for _ in range(2)]
    (failed,) = [client for client in records[1].clients if client.client == 1]
    assert failed.status == "failed"
    assert "training diverged" in failed.problem
    assert failed.bytes_up == 0 < failed.bytes_down
    assert all(tensor.isfinite().all() for tensor in course.state.weights.values())
    assert records[1].count("in time") == 2


def test_a_round_in_which_all_clients_diverge_ends_the_run_in_one_sentence():
    federation = set_up(dataclasses.replace(SMALL, batch_size=8))
    fleet = Diverging(federation)
    fleet.clients = ()
    course = Course(federation, fleet)
    course.advance()
    fleet.clients = (0, 1)
    with pytest.raises(InputError, match=r"training diverged .* all 2 clients of round 2 failed"):
        course.advance()
    assert len(course.history) == 1


@pytest.mark.parametrize(
    ("given", "said"),
    [(Notes, r"found the class Notes: give Notes\(\)"), (print, "derive from hfp.Observer; found builtin")],
)
def test_what_is_no_observer_is_refused_before_the_run(given, said):
    with pytest.raises(InputError, match=said):
        simulate(SMALL, observers=[given])
