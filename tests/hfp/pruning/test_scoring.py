"""Criteria that fail on a model: one line that names the layer and a way out."""

from __future__ import annotations

import pytest
import torch
import torch_pruning as tp
from torch import nn
from torch.nn import utils
from torch.nn.functional import cross_entropy

import hfp
from hfp.errors import InputError
from hfp.importance import CriterionError

X = torch.randn(4, 3, 9, 9, generator=torch.Generator().manual_seed(0))
DATA = [(X, torch.tensor([0, 1, 2, 0]))]
HALF = hfp.Budget(ratio=0.5)


def network(groups: int = 1) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3, groups=groups), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3),
    )  # fmt: skip


def failing(monkeypatch, fails):
    usual = tp.importance.FPGMImportance.__call__

    def call(self, group):
        if fails(group[0].dep.target.module):
            raise RuntimeError("no such shape")
        return usual(self, group)

    monkeypatch.setattr(tp.importance.FPGMImportance, "__call__", call)


def test_a_layer_that_a_criterion_of_torch_pruning_fails_on_is_left_alone_with_the_reason(monkeypatch):
    failing(monkeypatch, lambda layer: layer.in_channels == 3)
    model = nn.Sequential(*network(4)[:4], nn.Conv2d(16, 8, 1), nn.ReLU(), *network()[4:-1], nn.Linear(8, 3))
    report = hfp.prune(model, X, HALF, importance="fpgm").report
    reasons = {layer.name: layer.reason for layer in report.layers}
    lost = [layer.name for layer in report.layers if layer.after < layer.before]
    assert lost == ["2", "4"]
    assert "fpgm can't score the channels of 0 (RuntimeError" in str(reasons["0"])


def test_where_it_fails_on_all_the_first_failure_is_told(monkeypatch):
    failing(monkeypatch, lambda layer: True)
    with pytest.raises(CriterionError, match=r"fpgm can't score the channels of 0 \(RuntimeError.*ignored_layers"):
        hfp.prune(network(4), X, HALF, importance="fpgm")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_of_half_precision_are_scored_in_float32(dtype):
    narrow, wide = network().to(dtype), network().to(dtype).float()
    found = hfp.prune(narrow, X.to(dtype), HALF, importance="fpgm")
    expected = hfp.prune(wide, X, HALF, importance="fpgm")
    assert found.index_map == expected.index_map
    assert {parameter.dtype for parameter in (*narrow.parameters(), *found.model.parameters())} == {dtype}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated")
def test_weights_that_hooks_compute_are_scored_or_the_line_says_what_to_do():
    model = network()
    utils.weight_norm(model[0])
    utils.weight_norm(model[2])
    try:
        hfp.prune(model, X, HALF, importance="empirical-fisher", data=DATA, loss_fn=cross_entropy)
    except CriterionError as error:
        assert "remove_weight_norm" in str(error)  # noqa: PT017


def test_a_failure_of_the_caller_s_own_criterion_keeps_its_cause():
    def broken(group):
        raise ZeroDivisionError("mine")

    with pytest.raises(
        InputError, match=r"the criterion failed on the channels of 0 \(ZeroDivisionError: mine\)"
    ) as told:
        hfp.prune(network(), X, HALF, importance=broken)
    assert isinstance(told.value.__cause__, ZeroDivisionError)


class Quantile(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.network = network()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network(x - x.quantile(0.5))


def test_operations_that_change_a_shape_in_place_are_left_alone():
    assert hfp.prune(Quantile(), X, HALF).report.ratio == 0.5
