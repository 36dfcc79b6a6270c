"""Plans are found by counting, and what was counted is checked on the compact model."""

from __future__ import annotations

import gc

import pytest
import torch
from networks.small import images, net
from torch import nn

import hfp
from hfp.costs.macs import macs, parameters, state_bytes
from hfp.pruning.collector import only_new_objects
from hfp.reconstruct import Coupling


def builds(monkeypatch):
    """The compact models that planning makes to count with."""
    made, plain = [], Coupling.compact_skeleton
    monkeypatch.setattr(Coupling, "compact_skeleton", lambda *given: made.append(1) or plain(*given))
    return made


@pytest.mark.parametrize("name", ("resnet", "depthwise", "vit"))
@pytest.mark.parametrize("ranking", ("layer", "global"))
def test_the_plan_is_that_of_counting_by_running(name, ranking, monkeypatch):
    model, budget = net(name), hfp.Budget(macs=0.5, params=0.6)
    made = builds(monkeypatch)
    quick = hfp.prune(model, images(), budget, ranking=ranking)
    assert not made
    trace = Coupling.trace
    monkeypatch.setattr(Coupling, "trace", lambda *given: trace(*given).miscounting())
    slow = hfp.prune(model, images(), budget, ranking=ranking)
    assert made
    assert quick.index_map == slow.index_map


def test_a_wrong_count_is_noticed_and_costs_are_counted_by_running(monkeypatch):
    model, plain = net("resnet"), Coupling.costs
    monkeypatch.setattr(Coupling, "costs", lambda *given: {name: 0.9 * cost for name, cost in plain(*given).items()})
    made = builds(monkeypatch)
    result = hfp.prune(model, images(), hfp.Budget(macs=0.5))
    assert made
    assert macs(result.model, images()) <= 0.5 * macs(model, images())


def test_a_trace_that_misses_products_is_noticed_before_planning(monkeypatch):
    model, trace = net("resnet"), Coupling.trace

    def shortened(*given):
        """A coupling that does not know of the last product."""
        coupling = trace(*given)
        object.__setattr__(coupling._wiring.trace, "counted", coupling._wiring.trace.counted[:-1])
        return coupling

    plain = hfp.prune(model, images(), hfp.Budget(macs=0.5))
    monkeypatch.setattr(Coupling, "trace", shortened)
    made = builds(monkeypatch)
    result = hfp.prune(model, images(), hfp.Budget(macs=0.5))
    assert made
    assert result.report.costs == plain.report.costs


def test_the_model_runs_once_before_it_is_checked_and_the_compact_model_once():
    class Counted(nn.Module):
        runs = 0

        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 16), nn.Linear(16, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            Counted.runs += not x.is_meta
            return self.b(self.a(x).relu())

    hfp.prune(Counted(), torch.randn(2, 4), hfp.Budget(macs=0.5))
    assert Counted.runs == 3


def test_the_costs_that_are_reported_are_those_of_the_model_that_is_returned():
    model = net("resnet")
    data = [(images(8, seed), torch.zeros(8, dtype=torch.long)) for seed in range(2)]
    result = hfp.prune(model, images(), hfp.Budget(macs=0.5), steps=2, data=data, repair="bias")
    reported = {name: after for name, (_, after) in result.report.costs.items()}
    pruned = result.model
    assert reported == {"macs": macs(pruned, images()), "params": parameters(pruned), "bytes": state_bytes(pruned)}


def test_the_collector_is_as_before_after_pruning():
    before = gc.get_threshold()
    with only_new_objects():
        assert gc.get_freeze_count() > 0
        assert gc.get_threshold() > before
    assert gc.get_threshold() == before
    assert gc.get_freeze_count() == 0
    assert gc.isenabled()


def test_what_a_program_has_frozen_itself_stays_frozen():
    held = [[]]
    gc.freeze()
    try:
        with only_new_objects():
            made = [[]]
        looked_at = {id(thing) for thing in gc.get_objects()}
        assert id(held) not in looked_at
        assert id(made) in looked_at
    finally:
        gc.unfreeze()
