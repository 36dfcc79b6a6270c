"""Batch-norm policies of the evaluation, and clients' own models, against plain loops."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from hfp import Experiment, simulate
from hfp.costs.payload import packed_bytes
from hfp.data import Split, load_dataset
from hfp.federation.evaluation import Evaluator, class_weights
from hfp.federation.exchange import Exchange
from hfp.federation.fleet import InProcess
from hfp.federation.participation import Cohort
from hfp.federation.rounds import Course, rounds
from hfp.federation.safeguards import Safeguards
from hfp.federation.setup import set_up
from hfp.methods import methods
from hfp.reconstruct import compact_model
from hfp.results.beginning import first_lines
from hfp.results.report import round_line, run_document

SMALL = Experiment(train_images=200, clients=4, rounds=1, alpha=0.5, head_start=2.0, options={"warmup": 1})


class Measured(InProcess):
    """The embedded engine, which notes whose statistics were measured."""

    def __init__(self, federation):
        super().__init__(federation)
        self.measured = []

    def statistics(self, round, clients, weights):
        self.measured.append([client.index for client in clients])
        return super().statistics(round, clients, weights)


def with_policy(policy):
    federation = set_up(dataclasses.replace(SMALL, batch_norm=policy))
    state = next(iter(rounds(federation))).state
    return federation, state, Evaluator(federation, InProcess(federation), Safeguards(federation))


def statistics_replaced(model, images):
    """Batch-norm gets the statistics of all the images together, layer after layer."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = 1.0
    model.train()(images)
    return model.eval()


def scores_of(federation, model, chosen=slice(None)):
    test = federation.dataset.test
    with torch.no_grad():
        scores = model(federation.dataset.normalise(test.images[chosen]))
    return scores.argmax(1) == test.labels[chosen], functional.cross_entropy(scores, test.labels[chosen])


def test_local_is_the_mean_of_clients_that_keep_their_own_statistics():
    federation, state, evaluator = with_policy("local")
    found = evaluator.score(state)
    accuracies, losses, samples = [], [], []
    for shard in federation.shards:
        model = federation.model
        model.load_state_dict(dict(state.weights))
        statistics_replaced(model, federation.dataset.normalise(shard.images))
        correct, mean = scores_of(federation, model)
        accuracies.append(float(correct.float().mean()))
        losses.append(float(mean))
        samples.append(len(shard.labels))
    total = sum(samples)
    assert found.accuracy == pytest.approx(
        100 * sum(a * n for a, n in zip(accuracies, samples, strict=True)) / total, abs=0.3
    )
    assert found.loss == pytest.approx(sum(v * n for v, n in zip(losses, samples, strict=True)) / total, rel=1e-3)
    assert evaluator.traffic([]) == (0, 0)


def test_participants_pools_the_clients_of_the_round_alone():
    asked = dataclasses.replace(SMALL, batch_norm="participants", participation=0.5, dropout=0.4, rounds=4)
    federation, sizes = set_up(asked), []
    for outcome in rounds(federation):
        cohort, round = Cohort(asked, federation.context.clients), outcome.record.round - 1
        chosen = [client for client in cohort.asked(round) if not cohort.drops_out(round, client)]
        images = [federation.dataset.normalise(federation.shards[client.index].images) for client in chosen]
        sizes.append(len(chosen))
        every = packed_bytes(federation.initial)
        assert outcome.record.statistics[0] == len(chosen) * every
        if images:
            weights = outcome.state.weights
            federation.model.load_state_dict(dict(weights))
            batch = federation.model.stem[0](torch.cat(images))
            torch.testing.assert_close(
                weights["stem.1.running_mean"], batch.mean((0, 2, 3)).detach(), rtol=1e-3, atol=1e-4
            )
    assert set(sizes) & {1, 2}
    assert max(sizes) <= 2


def test_a_rounds_traffic_of_statistics_is_its_own_whether_it_is_tested_or_not():
    asked = dataclasses.replace(SMALL, batch_norm="participants", dropout=0.5, rounds=4, evaluate=4)
    federation = set_up(asked)
    for outcome in rounds(federation):
        heard = sum(client.status != "dropped" for client in outcome.record.clients)
        assert outcome.record.statistics[0] == heard * packed_bytes(federation.initial)


def test_participants_are_those_that_were_asked_and_not_those_that_are_still_busy():
    settings = {"profile": ("laptop", "board"), "late": "join", "rounds": 2, "head_start": 1.0, "deadline": 0.3}
    joining = dataclasses.replace(SMALL, batch_norm="participants", **settings)
    fleet = Measured(federation := set_up(joining))
    run = Course(federation, fleet).run()
    assert fleet.measured == [[client.client for client in record.clients] for record in run.history]
    assert [len(measured) for measured in fleet.measured] == [4, 3]


def test_a_round_that_asks_a_share_of_the_clients_asks_no_others_for_statistics_by_default():
    policies = {
        (1.0, None): "reestimate",
        (0.5, None): "participants",
        (0.5, "noise=1"): "reestimate",  # the privacy that statistics cost is counted for all clients
    }
    for (share, privacy), policy in policies.items():
        spent = None if privacy is None else {"noise": 1.0, "clip": 1.0}
        experiment = dataclasses.replace(SMALL, participation=share, privacy=spent)
        assert experiment.batch_norm_policy == policy
        assert dataclasses.replace(experiment, batch_norm="local").batch_norm_policy == "local"
    record = next(rounds(set_up(dataclasses.replace(SMALL, participation=0.25)))).record
    assert len(record.clients) == 1
    assert record.statistics[0] == packed_bytes(set_up(SMALL).initial)


def test_a_run_says_that_its_tests_ask_clients_that_its_rounds_leave_alone():
    said = [
        "\n".join(first_lines(set_up(dataclasses.replace(SMALL, batch_norm=policy, participation=share)), 1))
        for policy, share in (("reestimate", 0.5), ("participants", 0.5), ("reestimate", 1.0))
    ]
    assert "each asks all 4 clients for batch-norm statistics; batch_norm=participants asks" in said[0]
    assert not any("batch-norm" in text for text in said[1:])


def test_batch_uses_the_statistics_of_the_test_images_and_leaves_the_state():
    federation, state, evaluator = with_policy("batch")
    before = {name: tensor.clone() for name, tensor in state.weights.items()}
    found = evaluator.score(state)
    model = federation.model
    model.load_state_dict(dict(state.weights))
    model.train()
    correct, mean = scores_of(federation, model)  # 359 images are one batch
    assert found.accuracy == pytest.approx(100 * float(correct.float().mean()))
    assert found.loss == pytest.approx(float(mean), rel=1e-4)
    assert evaluator.score(state) == found
    for name, tensor in state.weights.items():
        assert torch.equal(tensor, before[name])


def test_batches_of_a_sorted_test_set_are_mixed(monkeypatch):
    monkeypatch.setattr("hfp.federation.evaluation.LARGE_BATCH", 50)
    federation = set_up(dataclasses.replace(SMALL, batch_norm="batch"))
    schedule = Evaluator(federation, InProcess(federation), Safeguards(federation))._mixed
    assert sorted(torch.cat(schedule).tolist()) == list(range(359))
    assert {len(chosen) for chosen in schedule} == {51, 52}
    order = federation.dataset.test.labels.sort().indices
    assert all(len(order[chosen].unique()) > 10 for chosen in schedule)


@given(
    test=st.lists(st.integers(0, 4), min_size=5, max_size=30), own=st.lists(st.integers(0, 4), min_size=1, max_size=9)
)
def test_weights_give_each_class_the_clients_share(test, own):
    weights = class_weights(torch.tensor(test), torch.tensor(own))
    for label in set(test):
        found = sum(float(weight) for weight, other in zip(weights, test, strict=True) if other == label)
        assert found == pytest.approx(own.count(label) / len(own))


@pytest.mark.parametrize("method", [method.name for method in methods()])
def test_own_models_are_what_clients_trained_with_their_own_statistics(method):
    options = {"passes": 2, "limit": 2} if method == "prunefl" else {}
    experiment = dataclasses.replace(SMALL, method=method, options=options)
    federation = set_up(experiment)
    state = federation.method.start(federation.context, federation.initial)
    client = federation.method.select(federation.context, state, federation.context.clients)[0]
    exchange = Exchange(federation)
    (answer,) = InProcess(federation).train(0, [client], lambda client: exchange.task(state, client))
    update = exchange.update(state.round, answer)
    held = federation.method.trained_part(federation.context, state, update)
    found = Evaluator(federation, InProcess(federation), Safeguards(federation)).own(0, client.index, held)
    shard = federation.shards[client.index]
    model = statistics_replaced(
        compact_model(federation.model, held.index_map, held.after), federation.dataset.normalise(shard.images)
    )
    correct, _ = scores_of(federation, model)
    expected = 0.0
    for label in shard.labels.unique():
        share = float((shard.labels == label).double().mean())
        expected += share * float(correct[federation.dataset.test.labels == label].double().mean())
    assert found == pytest.approx(100 * expected, abs=0.5)


def test_asking_clients_models_changes_nothing_else():
    asked = simulate(dataclasses.replace(SMALL, rounds=3, personal=2))
    plain = simulate(dataclasses.replace(SMALL, rounds=3))
    assert [record.personal is not None for record in asked.history] == [False, True, True]
    assert [record.accuracy for record in asked.history] == [record.accuracy for record in plain.history]
    for name, tensor in plain.global_state.items():
        assert torch.equal(asked.global_state[name], tensor)
    assert asked.personal == asked.history[-1].personal
    assert plain.personal is None
    assert "personal" not in plain.history[-1].as_dict()
    own, shared, clients = asked.history[-1].as_dict()["personal"].values()
    assert [one["client"] for one in clients] == [0, 1, 2, 3]
    assert own == pytest.approx(sum(one["own"] for one in clients) / 4)
    assert shared == pytest.approx(sum(one["shared"] for one in clients) / 4)
    assert 0 <= shared <= 100
    assert 0 <= own <= 100


def rarer(share):
    """Digits with only a part of the test images of class 0."""
    digits = load_dataset("digits", limit=100)
    labels = digits.test.labels
    kept = torch.cat([(labels != 0).nonzero().flatten(), (labels == 0).nonzero().flatten()[:share]])
    test = Split(digits.test.images[kept], labels[kept])
    return dataclasses.replace(digits, test=test)


def test_f1_is_in_the_metrics_always_and_on_screen_where_test_classes_are_uneven(capsys):
    assert not load_dataset("digits").uneven
    assert rarer(10).uneven
    for dataset, shown in ((rarer(30), False), (rarer(10), True)):
        run = simulate(Experiment(dataset=dataset, clients=2, rounds=1, head_start=3), progress=True)
        record = run.history[-1]
        assert record.as_dict()["f1"] == round(record.f1, 4) == pytest.approx(run.f1, abs=1e-4)
        assert (f"F1 {record.f1:5.1f} %" in capsys.readouterr().err) is shown
        assert run_document(run, None)["f1"] == run.f1


def test_f1_is_that_of_the_answers_to_the_whole_test_set():
    metrics = pytest.importorskip("sklearn.metrics")
    federation, state, evaluator = with_policy("aggregate")
    model, test = federation.model, federation.dataset.test
    model.load_state_dict(dict(state.weights))
    with torch.no_grad():
        answers = model.eval()(federation.dataset.normalise(test.images)).argmax(1)
    expected = metrics.f1_score(test.labels, answers, average="macro", zero_division=0)
    assert evaluator.score(state).f1 == pytest.approx(100 * expected)


def test_testing_less_often_changes_nothing_that_is_tested():
    often = simulate(dataclasses.replace(SMALL, rounds=4))
    seldom = simulate(dataclasses.replace(SMALL, rounds=4, evaluate=3))
    accuracies = [record.accuracy for record in seldom.history]
    assert accuracies == [None, None, often.history[2].accuracy, often.history[3].accuracy]
    assert [record.bytes_up for record in seldom.history] == [record.bytes_up for record in often.history]
    assert (seldom.accuracy, seldom.bytes_down) == (often.accuracy, often.bytes_down)
    assert seldom.history[0].as_dict()["accuracy"] is None
    assert "not tested" in round_line(seldom.history[0], 4)
    for f1 in (False, True):
        assert len({round_line(record, 4, f1).index("  up ") for record in seldom.history}) == 1
    assert math.isnan(dataclasses.replace(seldom, history=seldom.history[:2]).accuracy)
