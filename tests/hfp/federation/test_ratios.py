"""Ratios from budgets, against a walk over all hundredths."""

import pytest
import torch
from torch import nn

from hfp.costs.devices import Device
from hfp.costs.macs import macs, parameters
from hfp.costs.payload import pack
from hfp.errors import InputError
from hfp.federation.ratios import RatioFinder
from hfp.reconstruct import Coupling, compact_model

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
    found = RatioFinder(*network).find(limits, DEVICE, samples=40, client=0)
    fitting = [
        percent / 100
        for percent in range(97)
        if all(needs(network, percent / 100, 40)[name] <= most for name, most in limits.items())
    ]
    assert found == min(fitting)
    assert (found == 0) == (limits == {"macs": 1.0})


def test_what_cannot_be_met_is_said_with_what_could(network):
    with pytest.raises(InputError, match=r"client 3 can't keep within bytes=100: with 97% of the .* it needs bytes=\d"):
        RatioFinder(*network).find({"bytes": 100, "macs": 0.5}, DEVICE, samples=40, client=3)
