"""FedAvgM: FedAvg with momentum at the server."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from hfp.methods.blocks.calibration import calibrated
from hfp.methods.blocks.mean import MeanCollector
from hfp.methods.blocks.momentum import server_momentum_step
from hfp.methods.blocks.options import calibration_setting, server_momentum_setting
from hfp.methods.fedavg import FedAvg
from hfp.methods.interface.client_context import ClientContext
from hfp.methods.interface.registry import register
from hfp.methods.interface.values import MethodContext, ServerState, State, Task
from hfp.training.local_step import Objective


@register
@dataclass(frozen=True)
class FedAvgM(FedAvg):
    """FedAvgM computes ``v ← β v + Σ p_k (w_k - w_t)``, ``w_{t+1} = w_t + v`` over full models.

    The option `server_momentum` is ``β``. The calibrated loss is that of `hfp.methods.blocks.calibration`.
    """

    name: ClassVar[str] = "fedavgm"
    source: ClassVar[str] = "Hsu et al. 2019, arXiv 1909.06335"
    summary: ClassVar[str] = "fedavg with momentum at the server"

    server_momentum: float = server_momentum_setting(0.5)
    calibration: float = calibration_setting(0.0)

    def start(self, context: MethodContext, weights: State) -> ServerState:
        """Start with a velocity of 0."""
        return ServerState(round=0, weights=weights, method_state={})

    def objective(self, local: ClientContext, task: Task, model: nn.Module) -> Objective:
        """Minimise cross-entropy, calibrated where the option asks for it."""
        return calibrated(local, self.calibration)

    def collect(self, context: MethodContext, state: ServerState) -> MomentumCollector:
        """Average the models by their clients' samples and add the momentum."""
        return MomentumCollector(self.server_momentum, context, state)


class MomentumCollector(MeanCollector):
    """Averages full models and steps with momentum. The method's state is the velocity."""

    def __init__(self, momentum: float, context: MethodContext, state: ServerState) -> None:
        super().__init__(state, rule="fill")
        self._momentum, self._context = momentum, context

    def finish(self) -> ServerState:
        """Return the state that the next round starts from."""
        after, before = super().finish(), self._state
        weights, velocity = server_momentum_step(
            before.weights, after.weights, before.method_state, self._momentum, self._context.parameters
        )
        return ServerState(after.round, self._context.shared(weights), velocity)
