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
from hfp.methods.interface.base import moved_by
from hfp.methods.interface.values import MethodContext
from hfp.training.batch_norm import estimate

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


class Repeated(nn.Module):
    """A network that runs one block with batch-norm twice, under two names."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 8, 3)
        self.block = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.again, self.classes = self.block, nn.Linear(8, 10)

    def forward(self, x):
        return self.classes(self.again(self.block(self.first(x).relu())).mean((2, 3)))


@pytest.mark.parametrize("policy", ["reestimate", "participants", "local"])
@pytest.mark.parametrize("method", ["ca-hfp", "fedavg", "prunefl"])
def test_statistics_of_a_layer_under_two_names_stay_the_same(method, policy):
    options = {"passes": 2} if method == "prunefl" else {}
    run = course(method, Repeated, options, batch_norm=policy, rounds=2).run()
    assert {client.status for record in run.history for client in record.clients} == {"in time"}
    for name in ("block.1.running_mean", "block.1.running_var"):
        assert torch.equal(run.global_state[name], run.global_state[name.replace("block", "again")])


def test_private_statistics_of_a_layer_under_two_names_stay_the_same():
    pytest.importorskip("dp_accounting")
    run = course("fedavg", Repeated, privacy={"noise": 1.0}, rounds=2).run()
    assert torch.equal(run.global_state["block.1.running_var"], run.global_state["again.1.running_var"])


def test_a_layer_under_two_names_has_its_statistics_under_each():
    network = Repeated()
    found = estimate(network, [torch.randn(8, 1, 8, 8)])
    assert torch.equal(found["block.1.running_mean"], found["again.1.running_mean"])
    assert found.keys() == {name for name in network.state_dict() if "running" in name}


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


class Applied(Network):
    """A network that uses the values of its classifier without calling it."""

    def forward(self, x):
        x = self.third(self.second(self.first(x).relu()).relu()).relu().mean((2, 3))
        return nn.functional.linear(x, self.classes.weight, self.classes.bias)


def test_a_classifier_that_is_never_called_has_no_features_to_shorten():
    with pytest.raises(InputError, match="dapperfl shortens the features .* which this model doesn't call"):
        course("dapperfl", Applied).run()


class Spectral(Network):
    """A network with complex parameters and early stages in a sequence."""

    def __init__(self):
        super().__init__()
        self.spectrum = nn.Parameter(torch.randn(10, 5, dtype=torch.complex64))
        self.blocks = nn.Sequential(nn.Sequential(self.second, nn.ReLU()), nn.Sequential(self.third, nn.ReLU()))

    def forward(self, x):
        x = nn.functional.pad(x, (1, 1, 1, 1))
        x = torch.fft.irfft(torch.fft.rfft(x)[..., :5] * self.spectrum, n=10)
        return self.classes(self.blocks(self.first(x).relu()).mean((2, 3)))


@pytest.mark.parametrize("method", ["fedavg", "fedprox", "depthfl", "dapperfl", "fedavgm"])
def test_complex_parameters_train_with_their_imaginary_parts(method):
    pytest.importorskip("safetensors", minversion="0.7.0", reason="earlier versions write no complex numbers")
    run = course(method, Spectral).run()
    before = set_up(run.experiment).initial
    name = next(name for name in before if name.endswith("spectrum"))
    change = run.global_state[name] - before[name]
    assert 0 < change.imag.abs().max() < 1


def test_a_model_that_can_not_be_sent_is_refused_before_anything_trains():
    network = Network()
    network.register_buffer("spectrum", torch.ones(3, dtype=torch.complex128))
    with pytest.raises(InputError, match=r"can't be sent to clients: .* does not write tensors of torch\.complex128"):
        course("fedavg", network)


def test_a_late_change_of_complex_values_is_made_to_those_of_today():
    ones = {"spectrum": torch.ones(3, dtype=torch.complex64)}
    moved = moved_by({"spectrum": 1j * ones["spectrum"]}, ones, {"spectrum": 3 * ones["spectrum"]})
    assert torch.equal(moved["spectrum"], (2 + 1j) * ones["spectrum"])


@pytest.mark.parametrize(
    ("method", "settings", "what"),
    [
        ("ca-hfp", {}, "ca-hfp"),
        ("fedavg", {"diagnostics": True}, "a run with diagnostics"),
        ("fedavg", {"robust": "median"}, "a run with robust rules or privacy"),
        ("fedavg", {"privacy": {"noise": 1.0}}, "a run with robust rules or privacy"),
    ],
)
def test_complex_parameters_are_refused_where_values_are_compared(method, settings, what):
    pytest.importorskip("safetensors", minversion="0.7.0", reason="earlier versions write no complex numbers")
    with pytest.raises(InputError, match=f"{what} needs real parameters, and spectrum is torch.complex64"):
        course(method, Spectral, **settings)


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


def stages():
    """A network of two exits; behind the first of them two layers share a weight."""
    layers = [nn.Conv2d(8, 8, 3, stride=2, bias=False), nn.Conv2d(8, 8, 3, padding=1, bias=False)]
    layers[1].weight = layers[0].weight
    stages = [nn.Conv2d(1, 8, 3), layers[0], layers[1]]
    return nn.Sequential(*stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))


def test_a_client_that_lacks_a_shared_weight_lacks_it_under_both_names():
    run = course("depthfl", stages, rank=3).run()
    assert {client.status for record in run.history for client in record.clients} == {"in time"}
    assert torch.equal(run.global_state["network.1.weight"], run.global_state["network.2.weight"])


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


class Remembering(nn.Conv2d):
    """A convolution whose state has an entry without a value."""

    def get_extra_state(self):
        return None

    def set_extra_state(self, state):
        assert state is None


class Scaled(Network):
    """A network whose classes have a scale after them."""

    def __init__(self):
        super().__init__(outputs=12)
        self.classes = nn.Sequential(self.classes, nn.BatchNorm1d(12, affine=False), nn.PReLU())


def test_rows_of_classes_are_found_before_a_scale():
    federation = set_up(Experiment(model=Scaled, clients=3, train_images=90, rounds=1))
    assert federation.context.classifier == ("classes.0.weight", "classes.0.bias")


def test_entries_of_a_state_that_have_no_value_are_not_tied():
    model = nn.Sequential(Remembering(1, 4, 3), Remembering(4, 4, 3))
    weights = {name: value for name, value in model.state_dict().items() if value is not None}
    assert MethodContext(model, None, tuple(weights), (), 0, None).shared(weights) == weights
