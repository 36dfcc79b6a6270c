"""FedAvg: every client trains the full model; the server takes the mean weighted by samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from hfp.methods.blocks.mean import MeanCollector
from hfp.methods.interface.base import Method
from hfp.methods.interface.registry import register
from hfp.methods.interface.values import Client, MethodContext, ServerState
from hfp.reconstruct import Plan


@register
@dataclass(frozen=True)
class FedAvg(Method):
    """FedAvg computes ``w_{t+1} = Σ p_k w_k`` over full models, where ``p_k`` is the client's share of the samples."""

    name: ClassVar[str] = "fedavg"
    source: ClassVar[str] = "McMahan et al. 2017, arXiv 1602.05629"
    summary: ClassVar[str] = "every client trains the full model; mean weighted by samples"

    @property
    def uses_ratios(self) -> bool:
        """Every client trains the full model."""
        return False

    def plan(self, context: MethodContext, state: ServerState, client: Client) -> Plan:
        """Plan the full model, whatever the client's ratio."""
        return context.groups.plan({})

    def collect(self, context: MethodContext, state: ServerState) -> MeanCollector:
        """Average the models by their clients' samples."""
        return MeanCollector(state, rule="fill")
