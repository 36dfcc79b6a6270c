"""What a plan costs, counted from the kept channels, is what its compact model costs."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks.operations import NETWORKS
from torch.utils.flop_counter import FlopCounterMode

from hfp.costs.macs import parameters, state_bytes
from hfp.layers.calling import call, unfused
from hfp.reconstruct import Coupling

TRACED: dict[str, Coupling] = {}


def traced(name):
    """The groups of a network by name; tracing is what takes time here."""
    if name not in TRACED:
        torch.manual_seed(0)
        make, shape = NETWORKS[name]
        TRACED[name] = Coupling.trace(make().eval(), torch.randn(shape))
    return TRACED[name]


def counted_by_running(coupling, plan):
    """The reference: build the compact model, run it, and count with PyTorch's own counter."""
    model, inputs = coupling.compact_skeleton(plan)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with torch.no_grad(), unfused(model), FlopCounterMode(display=False) as counter:
        call(model.eval(), inputs)
    return {"macs": counter.get_total_flops() // 2, "params": parameters(model), "bytes": state_bytes(model)}


@st.composite
def kept(draw, coupling, least):
    """At least so many channels of every group; linked groups keep the same share."""
    found = {}
    for names in coupling.linked:
        parts = math.gcd(*(coupling.sizes[name] for name in names))
        left = draw(st.integers(min(least, parts), parts))
        for name in names:
            size = coupling.sizes[name]
            found[name] = sorted(draw(st.permutations(range(size)))[: left * size // parts])
    return found


@pytest.mark.parametrize("name", NETWORKS)
@settings(max_examples=6)
@given(data=st.data())
def test_counted_costs_are_those_of_the_compact_model(name, data):
    coupling = traced(name)
    # einsum does not multiply along a dimension of one index; planning notices it when it counts at the end
    chosen = data.draw(kept(coupling, least=2 if "einsum" in name else 1))
    assert coupling.costs(chosen) == counted_by_running(coupling, coupling.plan(chosen))
