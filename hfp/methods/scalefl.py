"""ScaleFL: clients train narrower channels of fewer blocks, and early exits learn from the last one (CVPR 2023)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from hfp.methods.blocks.selection import keep_window
from hfp.methods.depthfl import DepthFL, network_of
from hfp.methods.interface.base import percents
from hfp.methods.interface.client_context import ClientContext
from hfp.methods.interface.registry import register
from hfp.methods.interface.values import MethodContext, Task
from hfp.models.exits import WithExits
from hfp.reconstruct import Coupling, Plan
from hfp.settings import setting
from hfp.training.local_step import Objective


@register
@dataclass(frozen=True)
class ScaleFL(DepthFL):
    """ScaleFL cuts a client's submodel in depth and in width, both by the square root of its share ``1 - ratio``.

    Of ``M`` exits a client has ``m``, which is ``M √(1 - r)`` rounded up. Every coupled group keeps its first channels,
    the share ``(1 - r) M / m`` and at most all. It minimises ``Σ_j j L_j / (m (m + 1)/2)``. Before `warmup` of the
    rounds ``L_j`` is cross-entropy. Then it is ``1 - γ`` times that and ``γ T²`` times the divergence from the last
    exit's logits at temperature ``T``, where ``γ`` is `distillation`. The server's mean is that of `DepthFL`. The
    authors' search for the split of depth and width is not built, and their weights ``γ`` and ``T`` were not at hand.
    """

    name: ClassVar[str] = "scalefl"
    source: ClassVar[str] = "Ilhan et al., CVPR 2023"
    summary: ClassVar[str] = "each client trains fewer channels of the first blocks; early exits learn from the last"

    distillation: float = setting(0.1, "Exits learn from the last one with this weight.", within="[0, 1]")
    temperature: float = setting(3.0, "Distillation divides the logits by this temperature.", within="(0, 1000000]")
    warmup: float = setting(0.25, "Distillation begins after this share of the rounds.", within="[0, 1]")

    def exits(self, model: WithExits, ratio: float) -> int:
        """How many of the model's exits a client of a ratio trains."""
        return min(model.exits, math.ceil(model.exits * math.sqrt(1 - ratio) - 1e-9))

    def narrowed(self, model: WithExits, ratio: float) -> float:
        """Return the share of the channels that goes, so that depth and width together leave ``1 - ratio``."""
        return max(0.0, 1 - (1 - ratio) * model.exits / self.exits(model, ratio))

    def sized(self, model: nn.Module, groups: Coupling, ratio: float) -> Plan:
        """Keep the first channels, as many as a client of the ratio has."""
        return keep_window(groups, self.narrowed(network_of(model), ratio))

    def stage(self, model: nn.Module, ratio: float) -> int:
        """Where an exit goes, the others have more channels, and may cost more than all had before."""
        return self.exits(network_of(model), ratio)

    def removes(self, context: MethodContext) -> str:
        """Say how many of the exits, and which shares of the channels, clients leave out."""
        network = network_of(context.model)
        channels = percents(self.narrowed(network, client.ratio) for client in context.clients)
        return f"{super().removes(context)} and {channels} of their channels"

    def weights_in(self, context: MethodContext, round: int) -> Mapping[str, float]:
        """Return the weight of distillation in a round, 0 while it has not begun."""
        return {"distillation": self.distillation if round >= self.warmup * context.rounds else 0.0}

    def objective(self, local: ClientContext, task: Task, model: nn.Module) -> Objective:
        """Train later exits more than earlier ones, and earlier ones on the last one's logits."""
        weight = torch.tensor(task.values["distillation"], device=local.device)
        return FromTheLast(weight, self.temperature, network_of(model).depth)


class FromTheLast(Objective):
    """The mean of the exits' losses, weighted by their numbers; all but the last exit also learn from the last.

    Args:
        weight: of the divergence, a number on the model's device.
        temperature: divides the logits in the divergence.
        exits: how many exits run.
    """

    def __init__(self, weight: Tensor, temperature: float, exits: int) -> None:
        self.tensors = {"weight": weight}
        self._temperature, self._exits = temperature, exits

    def constants(self) -> tuple[int, float]:
        """Return the number of exits and the temperature, which decide what a step computes."""
        return self._exits, self._temperature

    def loss(self, model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        """Return the mean loss over a batch."""
        logits = network_of(model).logits(inputs)
        teacher = functional.log_softmax(logits[-1].detach() / self._temperature, dim=1)
        losses = [functional.cross_entropy(each, labels) for each in logits]
        for place, each in enumerate(logits[:-1]):
            student = functional.log_softmax(each / self._temperature, dim=1)
            divergence = functional.kl_div(student, teacher, reduction="batchmean", log_target=True)
            losses[place] = torch.lerp(losses[place], self._temperature**2 * divergence, self.tensors["weight"])
        numbers = torch.arange(1, len(losses) + 1, device=inputs.device)
        return (numbers * torch.stack(losses)).sum() / numbers.sum()
