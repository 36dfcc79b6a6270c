"""Experts whose weights are one tensor: rows are sorted by expert and multiplied in one call."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import hfp
from hfp.costs.macs import macs
from hfp.reconstruct import Coupling, MapError

pytestmark = pytest.mark.skipif(
    not hasattr(functional, "grouped_mm"), reason="this PyTorch has no products with the weights of each row's expert"
)


class Experts(nn.Module):
    """Every row goes to the expert whose gate is largest; the first expert's rows come first."""

    def __init__(self, wide: int = 32, experts: int = 4) -> None:
        super().__init__()
        self.enter, self.gate = nn.Linear(5, 16), nn.Linear(16, experts)
        self.up = nn.Parameter(torch.randn(experts, 2 * wide, 16))
        self.down = nn.Parameter(torch.randn(experts, 16, wide))
        self.leave = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        expert, order = torch.sort(self.gate(x).max(dim=-1).indices)
        counts = torch.histc(expert.float(), bins=len(self.up), min=0, max=len(self.up) - 1)
        ends = torch.cumsum(counts, 0, dtype=torch.int32)
        gate, up = functional.grouped_mm(x[order], self.up.transpose(1, 2), offs=ends).chunk(2, dim=-1)
        found = functional.grouped_mm(gate.sigmoid() * up, self.down.transpose(1, 2), offs=ends)
        return self.leave(torch.empty_like(found).index_copy(0, order, found) + x)


@pytest.fixture
def model() -> Experts:
    torch.manual_seed(0)
    return Experts().eval()


X = torch.randn(12, 5, generator=torch.Generator().manual_seed(0))


def test_the_width_of_experts_and_the_width_around_them_are_groups(model: Experts) -> None:
    coupling = Coupling.trace(model, X)
    assert dict(coupling.sizes) == {"enter": 16, "up": 32} and not coupling.unknown


def test_experts_lose_multiples_of_what_their_kernel_reads_at_once(model: Experts) -> None:
    coupling = Coupling.trace(model, X)
    assert dict(coupling.units) == {"enter": 4, "up": 4}
    assert len(coupling.plan({"up": range(12)}).kept["up"]) == 12
    with pytest.raises(MapError, match="up can lose a multiple of 4 channels, not 3"):
        coupling.plan({"up": range(29)})


def test_a_model_with_experts_is_pruned_and_computes_what_it_should(model: Experts) -> None:
    result = hfp.prune(model, X, hfp.Budget(macs=0.5))
    assert len(result.model.up[0]) // 2 % 4 == 0 and result.model.enter.out_features % 4 == 0
    masked = Coupling.trace(model, X).masked_output(model, X, result.index_map)
    assert torch.allclose(result.model(X), masked, atol=1e-4)


def test_the_macs_of_experts_are_counted(model: Experts) -> None:
    assert macs(model, X) == 12 * (5 * 16 + 16 * 4 + 16 * 64 + 32 * 16 + 16 * 3)
    coupling = Coupling.trace(model, X)
    plan = coupling.plan({"up": range(12), "enter": range(8)})
    assert coupling.costs(plan.kept)["macs"] == macs(*coupling.compact_skeleton(plan))
