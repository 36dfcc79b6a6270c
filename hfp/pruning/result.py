"""What `hfp.prune` returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from hfp.pruning.report import PruneReport
from hfp.reconstruct import IndexMap


@dataclass(frozen=True, repr=False)
class PruneResult:
    """A pruned model, its place in the full one, and a report.

    Printed, it is a summary of at most a screen; in a notebook, a table of the costs and one of the layers.

    Attributes:
        model: the compact model.
        index_map: which entries of the full model it holds; `restrict` and `embed` go there and back.
        report: what was asked for, what it costs, and what happened to every layer.

    >>> import hfp, torch
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 2))
    >>> result = hfp.prune(model, torch.zeros(1, 4), hfp.Budget(params=0.5))
    >>> state = result.index_map.embed(result.model.state_dict(), into=model.state_dict())
    >>> state["0.weight"].shape
    torch.Size([64, 4])
    """

    model: nn.Module
    index_map: IndexMap
    report: PruneReport

    @property
    def metadata(self) -> Mapping[str, Any]:
        """How the model was pruned, as `hfp.save_pruned` writes it."""
        report = self.report
        return {
            "criterion": report.criterion,
            "ranking": report.ranking,
            "budget": report.budget,
            "costs": {name: list(pair) for name, pair in report.costs.items()},
            "repairs": [repair.kind for repair in report.repairs],
        }

    def __repr__(self) -> str:
        return f"PruneResult: a {type(self.model).__name__}\n{self.report!r}"

    def _repr_html_(self) -> str:
        return self.report._repr_html_()
