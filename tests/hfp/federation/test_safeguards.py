"""Runs with robust rules and with privacy, from end to end."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from hfp import Experiment, simulate
from hfp.data import load_dataset
from hfp.errors import InputError
from hfp.federation.fleet import InProcess
from hfp.federation.privacy_account import epsilon, privacy_of
from hfp.federation.rounds import Course
from hfp.federation.setup import set_up
from hfp.results.report import round_line

SMALL = Experiment(
    clients=5, rounds=2, train_images=100, head_start=1.0, model="resnet8", method="fedavg", learning_rate=0.02
)


def lied(sent, back):
    """The change times -100, or the values themselves where the client has pruned them."""
    return sent - 100 * (back - sent) if sent.shape == back.shape else -100 * back


class Liar:
    """The embedded engine with a first client that sends its change times -100, and statistics off by 1000."""

    def __init__(self, federation):
        self._fleet, self._parameters = InProcess(federation), federation.context.parameters
        self.home = self._fleet.home

    def reachable(self, round, clients):
        return clients

    def train(self, round, clients, write):
        for result in self._fleet.train(round, clients, write):
            if result.client.index != 0:
                yield result
                continue
            sent = result.task.tensors
            tensors = {
                name: lied(sent[name], tensor) if name in self._parameters else tensor
                for name, tensor in result.reply.tensors.items()
            }
            yield dataclasses.replace(result, reply=dataclasses.replace(result.reply, tensors=tensors))

    def statistics(self, round, clients, weights):
        for client, own in self._fleet.statistics(round, clients, weights):
            yield client, {name: value + 1000 for name, value in own.items()} if client.index == 0 else own


def moved(state):
    """How far a run moved the parameters from where they started."""
    federation = set_up(SMALL)
    names = federation.context.parameters
    return float(torch.cat([(state[name] - federation.initial[name]).double().flatten() for name in names]).norm())


@pytest.mark.parametrize("rule", ["trimmed-mean:1", "median", "norm-clip,trimmed-mean:1"])
def test_a_liar_moves_the_global_model_far_and_next_to_nothing_under_a_rule(rule):
    honest = moved(Course(set_up(SMALL)).run().global_state)

    def attacked(**changes):
        federation = set_up(dataclasses.replace(SMALL, **changes))
        return Course(federation, Liar(federation)).run()

    assert moved(attacked().global_state) > 5 * honest
    defended = attacked(robust=rule)
    assert moved(defended.global_state) < 1.5 * honest
    assert [record.figures["undefended"] for record in defended.history] == [0.0, 0.0]


@pytest.mark.parametrize("rule", ["median", "norm-clip:0.01"])
def test_rules_hold_for_clients_that_prune_the_model_themselves(rule):
    pruning = dataclasses.replace(SMALL, method="dapperfl", robust=rule, rounds=1)
    run = Course(federation := set_up(pruning), Liar(federation)).run()
    assert [client.status for client in run.history[0].clients] == ["in time"] * 5
    assert moved(run.global_state) < 1.5 * moved(
        Course(set_up(dataclasses.replace(pruning, robust=None))).run().global_state
    )


class Few(InProcess):
    """The embedded engine, of which two clients can be reached."""

    def reachable(self, round, clients):
        return clients[:2]


@pytest.mark.parametrize("options", [{"passes": 2, "limit": 1}, {"passes": 2, "limit": 1, "every": 1}])
def test_weights_under_a_mask_that_too_few_train_keep_their_global_values_and_the_mask_stays(options):
    masked = dataclasses.replace(SMALL, method="prunefl", options=options, robust="median", rounds=3)
    run = Course(federation := set_up(masked), Few(federation)).run()
    assert [record.figures["undefended"] for record in run.history] == [1.0, 1.0, 1.0]
    assert run.history[1].clients[0].parameters == run.history[2].clients[0].parameters
    for name in federation.context.parameters:
        now, first = run.global_state[name], federation.initial[name]
        assert (now != 0).any() == (first != 0).any()
        torch.testing.assert_close(now, torch.where(now == 0, now, first), rtol=1e-6, atol=0)


def test_rules_about_entries_are_refused_where_clients_answer_single_weights_of_their_own():
    single = dataclasses.replace(SMALL, method="fiarse", options={"structured": False})
    Course(set_up(dataclasses.replace(single, robust="norm-clip")))
    with pytest.raises(InputError, match="with these options fiarse has no other robust rule than norm-clip"):
        Course(set_up(dataclasses.replace(single, robust="median")))


def test_the_share_that_cannot_be_defended_is_in_the_record():
    run = Course(set_up(dataclasses.replace(SMALL, method="ca-hfp", rank=3, robust="trimmed-mean:2"))).run()
    assert all(0 < record.figures["undefended"] <= 1 for record in run.history)


def test_without_safeguards_nothing_is_added_to_the_record():
    run = Course(set_up(SMALL)).run()
    assert all("epsilon" not in record.figures and "undefended" not in record.figures for record in run.history)


def test_rules_compare_the_row_of_a_class_over_the_clients_that_have_the_class():
    zeros, ones = ((load_dataset("digits").train.labels == label).nonzero().view(-1).tolist() for label in (0, 1))
    parts = [ones[4 * client : 4 * client + 4] for client in range(7)]
    parts[:3] = [[*parts[client], *zeros[4 * client : 4 * client + 4]] for client in range(3)]
    changes = {"method": "heterofl", "clients": 7, "rounds": 1, "partition": parts, "train_images": None, "ratio": 0.0}
    federation = set_up(dataclasses.replace(SMALL, robust="median", batch_norm="batch", **changes))
    course = Course(federation)
    course.advance()
    for name in federation.context.classifier:
        moved = (course.state.weights[name] != federation.initial[name]).view(10, -1).any(1)
        assert moved.tolist() == [True, True] + [False] * 8


@pytest.mark.parametrize("method", ["fedavg", "ca-hfp", "fiarse"])
def test_a_private_run_says_what_it_spent_and_repeats_itself(method):
    pytest.importorskip("dp_accounting")
    experiment = dataclasses.replace(SMALL, method=method, privacy={"noise": 2.0, "clip": 0.5})
    first, again = (Course(set_up(experiment)).run() for _ in range(2))
    spent = [record.figures["epsilon"] for record in first.history]
    assert 0 < spent[0] < spent[1]
    assert all(torch.equal(first.global_state[name], again.global_state[name]) for name in first.global_state)
    assert all(tensor.isfinite().all() for tensor in first.global_state.values())


def test_a_round_without_a_test_releases_no_statistics():
    pytest.importorskip("dp_accounting")
    experiment = dataclasses.replace(SMALL, privacy={"noise": 2.0}, rounds=3)
    often = Course(set_up(experiment)).run().history[1].figures["epsilon"]
    seldom = Course(set_up(dataclasses.replace(experiment, evaluate=3))).run().history[1].figures["epsilon"]
    assert seldom < often


def test_a_resumed_run_counts_the_releases_that_were_made():
    """The last round is always tested, so that a run that goes on for longer has released what no setting tells."""
    pytest.importorskip("dp_accounting")
    short = dataclasses.replace(SMALL, privacy={"noise": 2.0}, rounds=3, evaluate=2)
    course, longer = Course(set_up(short)), set_up(dataclasses.replace(short, rounds=4))
    course.run()
    record = Course(longer, run_state=course.run_state).advance().record
    assert [one.accuracy is not None for one in (*course.history, record)] == [False, True, True, True]
    privacy = privacy_of(short.privacy)
    assert record.figures["epsilon"] == epsilon(privacy, short.clients, short.clients, rounds=4, statistics=3)


def test_a_method_that_reads_more_than_submodels_is_refused_before_it_trains():
    federation = set_up(dataclasses.replace(SMALL, method="prunefl", privacy={"noise": 1.0}))
    with pytest.raises(InputError, match="prunefl can't run privately"):
        Course(federation)


def test_every_round_shows_what_was_spent_and_what_could_not_be_defended():
    run = Course(set_up(dataclasses.replace(SMALL, rounds=1))).run()
    record = dataclasses.replace(run.history[0], figures={"epsilon": 1.234, "undefended": 0.31})
    assert round_line(record, 1).endswith("  epsilon 1.23  31% of the model undefended")
    assert "epsilon" not in round_line(run.history[0], 1)


def test_a_rounds_line_says_why_a_reply_was_refused():
    experiment = Experiment(method="fedavg", clients=2, rounds=1, train_images=100, head_start=1.0, learning_rate=1e6)
    run = simulate(experiment)
    problem = run.history[0].clients[0].problem
    assert problem
    assert round_line(run.history[0], 1).endswith(f"  2 refused (client 0: {problem})")
