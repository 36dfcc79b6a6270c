"""Ratios from budgets, against a walk over all hundredths."""

import dataclasses
import re
from types import SimpleNamespace

import pytest
import torch
from cases import by_default
from torch import nn

from hfp import Experiment, InputError, simulate
from hfp.costs.devices import Device
from hfp.costs.macs import macs, parameters
from hfp.costs.memory import PeakBytesCounter
from hfp.costs.payload import pack
from hfp.federation.ratios import RatioFinder
from hfp.methods import create_method
from hfp.reconstruct import Coupling, compact_model

METHOD = create_method("fedavg")
DEVICE = Device("mine", macs=1e7, down=1e4, up=5e3)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 20, 3), nn.BatchNorm2d(20), nn.ReLU(), nn.Conv2d(20, 30, 3), nn.Flatten(), nn.Linear(120, 4)
    )
    example = torch.zeros(1, 1, 6, 6)
    return model, Coupling.trace(model, example, [model[5]]), example


def needs(network, ratio, samples):
    model, groups, example = network
    counts = {name: size - int(ratio * size + 0.5) for name, size in groups.sizes.items()}
    compact = compact_model(model, groups.index_map(groups.plan({n: range(c) for n, c in counts.items()})))
    message = len(pack(compact.state_dict()))
    work = macs(compact, example)
    return {
        "macs": work / macs(model, example),
        "params": parameters(compact) / parameters(model),
        "bytes": 2 * message,
        "seconds": message / 1e4 + 3 * work * samples / 1e7 + message / 5e3,
    }


@pytest.mark.parametrize(
    "limits",
    [{"macs": 0.3}, {"params": 0.5}, {"bytes": 9000}, {"seconds": 6.0}, {"macs": 0.9, "params": 0.2}, {"macs": 1.0}],
)
def test_the_smallest_ratio_within_the_limits(network, limits):
    found = RatioFinder(*network, 32, METHOD).find(limits, DEVICE, samples=40, client=0)
    fitting = [
        percent / 100
        for percent in range(97)
        if all(needs(network, percent / 100, 40)[name] <= most for name, most in limits.items())
    ]
    assert found == min(fitting)
    assert (found == 0) == (limits == {"macs": 1.0})


def test_scalefl_keeps_its_exits_where_fewer_channels_of_all_are_within_the_limits(monkeypatch):
    """Where an exit goes, the others have more channels and may cost more than all had before."""
    method, model = create_method("scalefl"), SimpleNamespace(exits=3)

    def cost(_finder, ratio):
        exits, width = method.exits(model, ratio), 1 - method.narrowed(model, ratio)
        return round(1e6 * exits / 3 * width**2), 1, 1

    monkeypatch.setattr(RatioFinder, "_leaves_channels", lambda *_: True)
    monkeypatch.setattr(RatioFinder, "_cost", cost)
    finder = RatioFinder(model, None, torch.zeros(1, 1), 32, method)
    assert cost(finder, 0.54) < cost(finder, 0.56)
    assert finder.find({"macs": 0.22}, DEVICE, samples=40, client=0) == 0.54


def test_what_cannot_be_met_is_said_with_what_could(network):
    with pytest.raises(InputError, match=r"client 3 can't keep within bytes=100: at a ratio of 0.97 it needs bytes=\d"):
        RatioFinder(*network, 32, METHOD).find({"bytes": 100, "macs": 0.5}, DEVICE, samples=40, client=3)


def kept_bytes(network, ratio):
    model, groups, example = network
    counts = {name: size - int(ratio * size + 0.5) for name, size in groups.sizes.items()}
    compact = compact_model(model, groups.index_map(groups.plan({n: range(c) for n, c in counts.items()})))
    return PeakBytesCounter(example)(compact, 32)


def with_memory(memory):
    return dataclasses.replace(DEVICE, memory=memory)


def test_a_clients_ratio_grows_until_its_submodel_fits_its_memory(network):
    memory = kept_bytes(network, 0.4)
    finder = RatioFinder(*network, 32, METHOD)
    fitting = [percent / 100 for percent in range(97) if kept_bytes(network, percent / 100) <= memory]
    assert finder.fitting(0.125, with_memory(memory), client=0) == min(fitting) > 0.125
    assert finder.fitting(0.125, with_memory(kept_bytes(network, 0.125)), client=0) == 0.125
    assert finder.fitting(0.6, with_memory(memory), client=0) == 0.6
    assert finder.find({"macs": 1.0}, with_memory(memory), samples=40, client=0) == min(fitting)


def test_a_device_too_small_for_any_submodel_is_refused_before_any_work(network):
    with pytest.raises(InputError, match=r"client 2 can't keep within memory=100: at a ratio of .* needs memory=\d"):
        RatioFinder(*network, 32, METHOD).fitting(0.25, with_memory(100), client=2)
    tiny = Experiment(clients=2, train_images=80, partition="iid", rounds=1, profile="1e9:1e6:1e6:1e3")
    with pytest.raises(InputError, match="client 0 can't keep within memory=1000"):
        simulate(tiny)


def test_a_run_keeps_within_the_memory_of_its_devices():
    free = Experiment(
        clients=2, train_images=80, partition="iid", rounds=1, head_start=1.0, ratio=0.0, batch_norm="aggregate"
    )
    most = max(client.peak_bytes for client in simulate(free).history[0].clients)
    small = f"2e10:3.75e6:1.25e6:{0.7 * most}"
    record = simulate(dataclasses.replace(free, profile=("phone", small))).history[0]
    assert record.clients[0].peak_bytes == most
    assert record.clients[1].peak_bytes <= 0.7 * most
    assert [client.ratio > 0 for client in record.clients] == [False, True]


def test_a_client_whose_method_takes_more_memory_than_its_device_has_is_not_asked():
    fedavg = Experiment(
        method="fedavg", clients=2, train_images=80, partition="iid", rounds=1, head_start=1.0, batch_norm="aggregate"
    )
    most = max(client.peak_bytes for client in simulate(fedavg).history[0].clients)
    small = f"2e10:3.75e6:1.25e6:{0.7 * most}"
    record = simulate(dataclasses.replace(fedavg, profile=("phone", small))).history[0]
    assert [client.status for client in record.clients] == ["in time", "failed"]
    assert record.clients[1].bytes_down == 0
    assert re.search(
        r"training the submodel of client 1 keeps .* MB in memory, and its device has", record.clients[1].problem
    )
    with pytest.raises(InputError, match="its device has .* MB; all 2 clients of round 1 failed"):
        simulate(dataclasses.replace(fedavg, profile=small))


ROUNDING = ["ca-hfp", "fedmp", "heterofl", "fedrolex", "fjord", "depthfl", "scalefl"]


@pytest.mark.parametrize("method", by_default(["ca-hfp", "fedrolex", "depthfl", "scalefl"], ROUNDING))
def test_submodels_are_within_the_limits_however_a_method_rounds(method):
    experiment = Experiment(
        method=method, clients=2, train_images=80, rounds=1, head_start=1.0, batch_norm="aggregate", ratio=0.3
    )
    full = simulate(dataclasses.replace(experiment, ratio=0.0)).history[0].clients[0]
    for share in (0.43, 0.6):
        within = dataclasses.replace(experiment, ratio=None, budget={"macs": share})
        assert all(one.forward_macs <= share * full.forward_macs for one in simulate(within).history[0].clients)
        small = dataclasses.replace(experiment, profile=f"2e10:4e6:1e6:{share * full.peak_bytes}")
        assert [one.status for one in simulate(small).history[0].clients] == ["in time", "in time"]


@pytest.mark.parametrize("method", ["fedprox", "prunefl", "fedrts", "fiarse"])
def test_a_client_is_not_asked_for_what_its_reply_would_be_refused_for(method):
    """Some methods keep more than the model: the global weights, or a mask."""
    options = {"prunefl": {"passes": 1, "limit": 1}, "fiarse": {"structured": False}}.get(method, {})
    experiment = Experiment(
        method=method, options=options, clients=1, train_images=80, rounds=1, head_start=1.0, batch_norm="aggregate"
    )
    most = simulate(experiment).history[0].clients[0].peak_bytes
    enough, small = (dataclasses.replace(experiment, profile=f"2e10:4e6:1e6:{most - less}") for less in (0, 1))
    assert simulate(enough).history[0].clients[0].status == "in time"
    with pytest.raises(InputError, match="training the submodel of client 0 keeps .* MB in memory"):
        simulate(small)


def test_a_client_of_few_exits_is_asked_where_its_device_holds_these():
    experiment = Experiment(
        method="depthfl", clients=2, train_images=80, rounds=1, head_start=1.0, batch_norm="aggregate", ratio=[0, 0.7]
    )
    whole, part = simulate(experiment).history[0].clients
    assert part.peak_bytes < whole.peak_bytes
    small = dataclasses.replace(experiment, profile=("phone", f"2e10:4e6:1e6:{part.peak_bytes}"))
    assert [client.status for client in simulate(small).history[0].clients] == ["in time", "in time"]


@pytest.mark.parametrize("method", ["depthfl", "scalefl"])
@pytest.mark.parametrize("limit", ["params", "bytes"])
def test_what_a_clients_exits_do_not_need_is_in_no_budget(method, limit):
    experiment = Experiment(
        method=method, clients=1, train_images=80, rounds=1, head_start=1.0, batch_norm="aggregate", ratio=0.0
    )
    full, part = (simulate(dataclasses.replace(experiment, ratio=ratio)).history[0].clients[0] for ratio in (0, 0.6))
    most = {"params": part.parameters / full.parameters, "bytes": part.bytes_down + part.bytes_up}[limit]
    within = simulate(dataclasses.replace(experiment, ratio=None, budget={limit: most})).history[0].clients[0]
    assert within.ratio <= 0.6
    assert within.parameters == part.parameters


def test_another_client_finds_prunefls_mask_where_the_first_one_can_not():
    small = f"2e10:3.75e6:1.25e6:{2**20}"
    run = simulate(
        Experiment(
            method="prunefl",
            options={"passes": 1, "limit": 1},
            partition=[range(50), range(50, 80)],
            clients=2,
            rounds=3,
            head_start=1.0,
            ratio=0.5,
            profile=(small, "phone"),
        )
    )
    found = [(record.phase, [(one.client, one.status) for one in record.clients]) for record in run.history]
    assert found[:2] == [("initial", [(0, "failed")]), ("initial", [(1, "in time")])]
    assert run.history[2].phase == "train"
