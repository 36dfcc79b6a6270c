"""Diagnostics against their definitions with dense masks, in float64."""

import dataclasses
import json
from itertools import combinations

import pytest
import torch
from cases import by_default
from federated import SAMPLES, STEP_SIZE, STEPS, begin, context_of, dense, held, made_up, small_network
from torch import nn
from torch.nn import functional

from hfp import Experiment, simulate
from hfp.commands.cli import main
from hfp.federation.diagnostics import DiagnosticsObserver
from hfp.federation.setup import Federation, set_up
from hfp.methods import create_method
from hfp.methods.blocks import sparse
from hfp.training.batch_norm import batch_statistics
from hfp.training.local_step import LocalData, LocalTraining, train

SMALL = Experiment(train_images=120, clients=3, rounds=2, batch_size=8, diagnostics=True)


@pytest.fixture(scope="module")
def federation():
    """The small network and its clients as a federation that the observer can sample images from."""
    model = small_network()
    context = context_of(model)
    random = torch.Generator().manual_seed(0)
    shards = tuple(
        LocalData(
            torch.randn(client.samples, 1, 8, 8, generator=random, dtype=torch.float64),
            torch.randint(10, (client.samples,), generator=random),
            lambda images: images,
        )
        for client in context.clients
    )
    return dataclasses.replace(
        set_up(SMALL), method=create_method("fedrolex", mask_classes=False), model=model, context=context, shards=shards
    )


def watched(federation: Federation, rounds: int):
    """Rounds of made-up updates: for each the state before it, the updates and the figures."""
    method, context, observer = federation.method, federation.context, DiagnosticsObserver(federation)
    state, observer_state = begin(federation.model, method, context), []
    for round in range(rounds):
        observer.round_began(state)
        collector = method.collect(context, state)
        updates = list(made_up(context, method, state, seed=round))
        updates = [
            dataclasses.replace(u, reply=dataclasses.replace(u.reply, variance=float(u.client.index))) for u in updates
        ]
        for update in updates:
            collector.add(update)
            observer.update_came(state, update)
        after = collector.finish()
        observer_state.append((state, updates, observer.figures(None)["diagnostics"]))
        state = after
    return observer_state


def pseudo(update, name, state):
    change = state.weights[name] - dense(update, name, state.weights[name])
    return change / (STEP_SIZE * STEPS)


def test_figures_are_their_definitions(federation):
    (first, _, before), (state, updates, figures) = watched(federation, 2)
    names = federation.context.parameters
    assert figures.gradient_variance == pytest.approx((50 * 1 + 20 * 2) / SAMPLES)

    masks = {name: [held(u, name) for u in updates] for name in names}
    shares = [u.client.samples / SAMPLES for u in updates]
    missing = {name: sum(p * ~m for p, m in zip(shares, masks[name], strict=True)) for name in names}
    assert figures.perturbation == pytest.approx(
        sum(float((missing[name] * state.weights[name]).square().sum()) for name in names)
    )

    dissimilarity = 0.0
    for name in names:
        weights = torch.stack([u.client.samples * m.double() for u, m in zip(updates, masks[name], strict=True)])
        values = torch.stack([pseudo(u, name, state) for u in updates])
        total = weights.sum(0).clamp(min=1)
        mean = (weights * values).sum(0) / total
        dissimilarity += float((weights * (values - mean).square() / total).sum())
    assert figures.dissimilarity == pytest.approx(dissimilarity, rel=1e-9)

    pairs = list(combinations(range(3), 2))
    overlaps = []
    for one, other in pairs:
        both = sum(int((masks[name][one] & masks[name][other]).sum()) for name in names)
        either = sum(int((masks[name][one] | masks[name][other]).sum()) for name in names)
        overlaps.append(both / either)
    assert figures.overlap == pytest.approx(sum(overlaps) / 3)
    assert before.predicted is None


def test_the_predicted_change_uses_the_estimates_of_the_rounds_before(federation):
    (first, updates, _), (state, later, figures) = watched(federation, 2)
    predicted = 0.0
    for name in federation.context.parameters:
        weight = sum(u.client.samples * held(u, name).double() for u in updates)
        total = [(u.client.samples, pseudo(u, name, first)) for u in updates]
        g = torch.where(weight > 0, sum(n * x for n, x in total) / weight.clamp(min=1), 0.0)
        h = sum(n * x.square() for n, x in total) / weight.clamp(min=1)
        h = torch.where(weight > 0, h, h[weight > 0].mean())
        q = sum(u.client.samples / SAMPLES * ~held(u, name) for u in later)
        w = state.weights[name]
        predicted += float((-q * g * w + q.square() * h * w.square() / 2).sum())
    assert figures.predicted == pytest.approx(predicted, rel=1e-6)


def test_the_actual_change_is_that_of_the_loss_without_what_is_missing(federation):
    ((state, updates, figures),) = watched(federation, 1)
    images = torch.cat([shard.images for shard in federation.shards])
    labels = torch.cat([shard.labels for shard in federation.shards])
    losses = []
    for present in (1, 0):
        model = small_network().train()
        weights = dict(state.weights)
        for name in federation.context.parameters:
            missing = sum(u.client.samples / SAMPLES * ~held(u, name) for u in updates)
            weights[name] = weights[name] * (1 - (1 - present) * missing)
        model.load_state_dict(weights)
        with torch.no_grad():
            losses.append(float(functional.cross_entropy(model(images), labels)))
    assert figures.actual == pytest.approx(losses[1] - losses[0], rel=1e-6)


def test_coverage_counts_channels_that_somebody_trained(federation):
    rounds = watched(federation, 7)
    context, method = federation.context, federation.method
    plans = [
        [method.plan(context, dataclasses.replace(state, round=r), c).kept for c in context.clients]
        for r, (state, _, _) in enumerate(rounds)
    ]
    for r, (_, _, figures) in enumerate(rounds):
        assert set(figures.coverage) == set(context.groups.names)
        for name, size in context.groups.sizes.items():
            now = set().union(*(kept[name] for kept in plans[r]))
            lately = set().union(*(kept[name] for past in plans[max(0, r - 4) : r + 1] for kept in past))
            assert figures.coverage[name] == pytest.approx(len(now) / size)
            assert figures.recent[name] == pytest.approx(len(lately) / size)


def test_unstructured_masks_overlap_by_their_weights(federation):
    model, context = federation.model, federation.context
    method = create_method("prunefl")
    federation = dataclasses.replace(federation, method=method)
    state = begin(model, method, context)
    random = torch.Generator().manual_seed(0)
    masks = {name: torch.rand(m.shape, generator=random) < 0.3 for name, m in sparse.full_masks(model).items()}
    method_state = dataclasses.replace(state.method_state, masks=masks, holders=frozenset({0, 1, 2}))
    state = dataclasses.replace(state, round=1, method_state=method_state, weights=sparse.cleared(state.weights, masks))
    observer = DiagnosticsObserver(federation)
    observer.round_began(state)
    for update in made_up(context, method, state):
        observer.update_came(state, update)
    figures = observer.figures(None)["diagnostics"]
    assert figures.overlap == 1.0
    assert figures.perturbation == 0.0
    rows = masks["stem.0.weight"].flatten(1).any(1).double().mean()
    assert figures.coverage["stem.0"] == pytest.approx(float(rows))


def test_what_one_client_lacks_wholly_is_not_shared():
    quick = {"train_images": 60, "clients": 2, "rounds": 1, "head_start": 1.0, "diagnostics": True}
    record = simulate(Experiment(method="depthfl", ratio=(0.0, 0.9), **quick)).history[0]
    whole, part = (client.parameters for client in record.clients)
    assert part < whole
    assert record.diagnostics.overlap == pytest.approx(part / whole)


def test_one_client_overlaps_with_nobody(federation):
    method, context = federation.method, federation.context
    state, observer = begin(federation.model, method, context), DiagnosticsObserver(federation)
    observer.round_began(state)
    observer.update_came(state, next(made_up(context, method, state)))
    assert observer.figures(None)["diagnostics"].overlap is None


def test_variance_is_that_of_the_gradients_of_the_steps():
    torch.manual_seed(0)
    images, labels = torch.randn(12, 5, dtype=torch.float64), torch.randint(3, (12,))
    model = nn.Linear(5, 3).double()
    training = LocalTraining(1, 4, learning_rate=1e-12, momentum=0.0, weight_decay=0.0, measure_variance=True)
    gradients = []
    for chosen in torch.randperm(12, generator=torch.Generator().manual_seed(7)).split(4):
        loss = functional.cross_entropy(model(images[chosen]), labels[chosen])
        gradients.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))]))
    data = LocalData(images, labels, lambda batch: batch)
    result = train(model, data, training, torch.Generator().manual_seed(7))
    assert result.variance == pytest.approx(float(torch.stack(gradients).var(0).sum()), rel=1e-6)
    one = train(model, data, training, torch.Generator(), schedule=[torch.arange(4)])
    assert one.variance == 0.0
    plain = dataclasses.replace(training, measure_variance=False)
    assert train(model, data, plain, torch.Generator()).variance is None


def test_batch_statistics_are_used_by_batch_norm_alone():
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout(0.9))
    model[1].eval()
    with batch_statistics(model):
        out = model(torch.tensor([[1.0, 2.0], [3.0, 6.0]]))
    torch.testing.assert_close(out, torch.tensor([[-1.0, -1.0], [1.0, 1.0]]), rtol=1e-4, atol=1e-4)
    assert [module.training for module in model.modules()] == [True, True, False]


@pytest.mark.parametrize("method", by_default(["ca-hfp", "prunefl"], ["ca-hfp", "dapperfl", "prunefl"]))
def test_runs_write_diagnostics_with_their_metrics_and_change_nothing(method):
    options = {"passes": 2, "limit": 2} if method == "prunefl" else {}
    measured = dataclasses.replace(SMALL, method=method, options=options)
    run, plain = simulate(measured), simulate(dataclasses.replace(measured, diagnostics=False))
    assert [record.accuracy for record in run.history] == [record.accuracy for record in plain.history]
    last = json.loads(json.dumps(run.history[-1].as_dict()))["diagnostics"]
    assert last["gradient_variance"] > 0
    assert 0 < last["overlap"] <= 1
    assert "diagnostics" not in plain.history[-1].as_dict()


def test_a_round_without_replies_has_none():
    run = simulate(dataclasses.replace(SMALL, deadline=1e-9, rounds=1))
    assert run.history[0].diagnostics is None


def test_diagnostics_are_drawn(tmp_path):
    words = ["--train-images", "60", "--clients", "3", "--rounds", "2", "--diagnostics", "--out", str(tmp_path / "out")]
    assert main(["run", *words]) == 0
    assert (tmp_path / "out/diagnostics.png").read_bytes().startswith(b"\x89PNG")
