"""Runs of networks that share, compute or freeze weights, or tell more classes apart than the data has."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from hfp import Experiment, InputError
from hfp.federation.rounds import Course
from hfp.federation.setup import set_up
from hfp.methods.blocks import sparse

SINGLE = {"structured": False}


class Network(nn.Module):
    """Three convolutions, of which the last two may share a weight."""

    def __init__(self, outputs=10, shared=False, normed=False, frozen=False):
        super().__init__()
        self.first, self.second, self.third = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3)
        self.classes = nn.Linear(8, outputs)
        if shared:
            self.third.weight = self.second.weight
        if normed:
            weight_norm(self.second)
        self.first.requires_grad_(not frozen)

    def forward(self, x):
        x = self.third(self.second(self.first(x).relu()).relu()).relu()
        return self.classes(x.mean((2, 3)))


def course(method, make, options=None, **settings):
    experiment = Experiment(
        method=method,
        options=options or {},
        model=make,
        **{"clients": 3, "rank": 2, "train_images": 90, "rounds": 3, "head_start": 1.0, **settings},
    )
    return Course(set_up(experiment))


def sharing():
    return Network(shared=True)


def normed():
    return Network(normed=True)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("ca-hfp", {}),
        ("fedavgm", {}),
        ("fiarse", {"server_rate": 0.5}),
        ("fiarse", SINGLE | {"server_rate": 0.5}),
        ("prunefl", {"passes": 2, "every": 1}),
        ("fedrts", {"every": 1}),
        ("heterofl", {}),
    ],
)
def test_a_weight_that_two_layers_share_stays_one(method, options):
    run = course(method, sharing, options).run()
    assert {client.status for record in run.history for client in record.clients} == {"in time"}
    assert torch.equal(run.global_state["second.weight"], run.global_state["third.weight"])
    assert not torch.equal(run.global_state["second.weight"], set_up(run.experiment).initial["second.weight"])


def test_noise_of_a_private_run_is_the_same_in_both_places_of_a_weight():
    pytest.importorskip("dp_accounting")
    run = course("fedavg", sharing, privacy={"noise": 1.0}, rounds=2).run()
    assert torch.equal(run.global_state["second.weight"], run.global_state["third.weight"])


@pytest.mark.parametrize("make", [sharing, normed])
def test_weights_that_are_shared_or_computed_are_not_pruned_one_by_one(make):
    model = make()
    left = {"third.weight"} if make is normed else set()
    assert sparse.full_masks(model).keys() == {"first.weight", "classes.weight"} | left


@pytest.mark.parametrize(
    ("method", "options"),
    [("prunefl", {"passes": 2, "every": 1}), ("fedrts", {}), ("fiarse", SINGLE), ("dapperfl", {})],
)
def test_a_weight_that_is_computed_trains(method, options):
    run = course(method, normed, options, rounds=2).run()
    assert {client.status for record in run.history for client in record.clients} == {"in time"}


@pytest.mark.parametrize("method", ["ca-hfp", "fiarse"])
def test_what_scores_weights_that_are_computed_is_refused_before_anything_trains(method):
    with pytest.raises(InputError, match=f"{method} scores channels .* and second computes its weight from others"):
        course(method, normed)


def wholly_normed():
    network = Network()
    for layer in network.children():
        weight_norm(layer)
    return network


@pytest.mark.parametrize(("method", "options"), [("prunefl", {}), ("fedrts", {}), ("fiarse", SINGLE)])
def test_a_model_without_a_weight_to_prune_is_one_line(method, options):
    with pytest.raises(InputError, match=f"{method} prunes weights .* one by one, and each of this model's is shared"):
        course(method, wholly_normed, options)


def frozen():
    return Network(frozen=True)


@pytest.mark.parametrize(
    ("method", "settings"), [("ca-hfp", {}), ("fedavg", {"privacy": {"noise": 1.0}}), ("fedavgm", {})]
)
def test_a_frozen_parameter_stays_as_it_is(method, settings):
    if "privacy" in settings:
        pytest.importorskip("dp_accounting")
    run = course(method, frozen, **settings).run()
    before = set_up(run.experiment).initial
    for name in ("first.weight", "first.bias"):
        torch.testing.assert_close(run.global_state[name], before[name], rtol=1e-6, atol=1e-7)
    assert not torch.equal(run.global_state["second.weight"], before["second.weight"])


@pytest.mark.parametrize("method", ["heterofl", "fedrolex"])
def test_a_classifier_of_more_classes_than_the_data_has_is_trained(method):
    run = course(method, lambda: Network(outputs=12), rounds=2).run()
    assert {client.status for record in run.history for client in record.clients} == {"in time"}
    before, after = set_up(run.experiment).initial["classes.weight"], run.global_state["classes.weight"]
    changed = (before != after).any(1)
    assert changed[:10].any()
    assert not changed[10:].any()
