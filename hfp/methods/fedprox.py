"""FedProx: full models, a pull towards the global model, and fewer steps at weak clients (arXiv 1812.06127)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from hfp.methods.blocks.mean import MeanCollector
from hfp.methods.interface.base import Method, percents
from hfp.methods.interface.client_context import ClientContext
from hfp.methods.interface.registry import register
from hfp.methods.interface.values import Client, MethodContext, Reply, ServerState, Task
from hfp.reconstruct import Plan
from hfp.settings import setting
from hfp.training.local_step import Objective


@register
@dataclass(frozen=True)
class FedProx(Method):
    """FedProx adds ``(μ/2) ‖w - w_t‖²`` to the local loss and computes ``w_{t+1} = Σ p_k w_k`` over full models.

    A client that other methods would give a smaller model takes fewer local steps instead, and these count in full.
    """

    name: ClassVar[str] = "fedprox"
    source: ClassVar[str] = "Li et al., MLSys 2020, arXiv 1812.06127"
    summary: ClassVar[str] = "full models, kept near the global one by a proximal term; weak clients run fewer steps"

    mu: float = setting(0.01, "The proximal term has this weight.", within="[0, inf)")
    partial: bool = setting(True, "A client of ratio r runs the share 1 - r of its local steps, and at least one.")

    @property
    def uses_ratios(self) -> bool:
        """A ratio shortens a client's training, and nothing else."""
        return self.partial

    def removes(self, context: MethodContext) -> str:
        """Say which shares of their local steps clients leave out."""
        return f"{percents(client.ratio for client in context.clients)} of their local steps" if self.partial else ""

    def plan(self, context: MethodContext, state: ServerState, client: Client) -> Plan:
        """Plan the full model."""
        return context.groups.plan({})

    def send(self, context: MethodContext, state: ServerState, client: Client, plan: Plan) -> Task:
        """Send the full state, and the share of the local steps to run."""
        index_map = context.groups.index_map(plan)
        share = 1 - client.ratio if self.partial else 1.0
        return Task(plan, index_map, index_map.restrict(state.weights), {"share": share})

    def train(self, local: ClientContext, task: Task) -> Reply:
        """Run the task's share of the steps under the proximal objective."""
        model, schedule = local.build(task), local.schedule()
        steps = max(1, round(task.values["share"] * len(schedule)))
        result = local.fit(model, Proximal(model, self.mu), schedule[:steps])
        return local.reply(model, result, peak_bytes=local.peak(model) + self.extra_bytes(model))

    def extra_bytes(self, model: nn.Module) -> int:
        """Count ``w_t``, which the client keeps beside the model."""
        return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())

    def collect(self, context: MethodContext, state: ServerState) -> MeanCollector:
        """Average the models by their clients' samples."""
        return MeanCollector(state, rule="fill")


class Proximal(Objective):
    """Cross-entropy plus ``(μ/2) ‖w - w_t‖²`` over all parameters.

    Args:
        model: its present parameters are ``w_t``.
        mu: ``μ``.
    """

    def __init__(self, model: nn.Module, mu: float) -> None:
        self._mu = mu
        self.tensors = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}

    def constants(self) -> tuple[float]:
        """Return ``μ``."""
        return (self._mu,)

    def loss(self, model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        """Return the mean loss over a batch."""
        pairs = zip(model.parameters(), self.tensors.values(), strict=True)
        distance = torch.stack([_square(parameter - anchor) for parameter, anchor in pairs]).sum()
        return super().loss(model, inputs, labels) + self._mu / 2 * distance


def _square(change: Tensor) -> Tensor:
    """Return the squared Euclidean norm, which is a real number for complex values too."""
    return (torch.view_as_real(change) if change.is_complex() else change).square().sum()
