"""DepthFL: clients train the first blocks of a network with early exits, which teach each other (ICLR 2023)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from hfp.costs.macs import parameters
from hfp.errors import InputError
from hfp.methods.interface.base import Method
from hfp.methods.interface.client_context import ClientContext
from hfp.methods.interface.registry import register
from hfp.methods.interface.values import Client, MethodContext, Reply, ServerState, Task, TrainedPart, Update
from hfp.models.exits import WithExits, completed, only_exits, shortened, with_exits
from hfp.reconstruct import Coupling, Plan
from hfp.settings import setting
from hfp.training.local_step import Objective

EXITS = "exits"


@register
@dataclass(frozen=True)
class DepthFL(Method):
    """DepthFL gives the model early exits; a client of ratio ``r`` trains the first ``(1 - r)`` of them.

    Of ``M`` exits a client has ``m``, which is ``(1 - r) M`` rounded and at least 1, and all that these need. It
    minimises ``Σ_i [CE(z_i) + w(t)/(m - 1) Σ_{j≠i} KL(stop(p_j) ‖ p_i)]`` with ``w(t) = exp(-5 (1 - min(t, T)/T)²)``,
    where ``T`` is `ramp`. Every entry becomes the mean over the clients that hold it, weighted by samples. The global
    model predicts by the mean of its exits' logits.

    Exits are put on the model by `hfp.models.exits.with_exits`, which has other heads than the authors' ResNet. A
    client's own model, as it is tested in a run, has zeros where the client holds nothing. This does not change which
    class it predicts.
    """

    name: ClassVar[str] = "depthfl"
    source: ClassVar[str] = "Kim et al., ICLR 2023"
    summary: ClassVar[str] = "each client trains the first blocks; early exits teach each other"

    distillation: float = setting(1.0, "Exits learn from each other with this weight at most.", within="[0, inf)")
    ramp: int = setting(
        300, "After so many rounds distillation has its whole weight.", within="[1, inf)", unit="rounds"
    )

    def prepare(self, model: nn.Module, example: Tensor) -> nn.Module:
        """Give the model early exits."""
        return with_exits(model, example)

    def removes(self, context: MethodContext) -> str:
        """Say how many of the exits clients leave out."""
        network = network_of(context.model)
        gone = {network.exits - self.exits(network, client.ratio) for client in context.clients}
        return f"{', '.join(map(str, sorted(gone)))} of the {network.exits} exits"

    def plan(self, context: MethodContext, state: ServerState, client: Client) -> Plan:
        """Plan the channels of the client's ratio, which are the same in every round."""
        return self.sized(context.model, context.groups, client.ratio)

    def sized(self, model: nn.Module, groups: Coupling, ratio: float) -> Plan:
        """Keep all channels."""
        return groups.plan({})

    def trained_model(self, model: nn.Module, ratio: float) -> nn.Module:
        """Return the model with what the client's exits need alone."""
        network = network_of(model)
        return only_exits(network, self.exits(network, ratio))

    def exits(self, model: WithExits, ratio: float) -> int:
        """How many of the model's exits a client of a ratio trains."""
        return max(1, math.floor((1 - ratio) * model.exits + 0.5))

    def send(self, context: MethodContext, state: ServerState, client: Client, plan: Plan) -> Task:
        """Send what the client's exits need, and how many they are."""
        task = super().send(context, state, client, plan)
        network = network_of(context.model)
        exits = self.exits(network, client.ratio)
        values = {EXITS: float(exits), **self.weights_in(context, state.round)}
        return dataclasses.replace(task, tensors=shortened(network, exits, task.tensors), values=values)

    def weights_in(self, context: MethodContext, round: int) -> Mapping[str, float]:
        """Return what the loss of a round weighs its parts with, by name; clients are sent it."""
        passed = min(round, self.ramp) / self.ramp
        return {"distillation": self.distillation * math.exp(-5 * (1 - passed) ** 2)}

    def objective(self, local: ClientContext, task: Task, model: nn.Module) -> Objective:
        """Train every exit on the labels and on the other exits."""
        return MutualExits(torch.tensor(task.values["distillation"], device=local.device), network_of(model).depth)

    def train(self, local: ClientContext, task: Task) -> Reply:
        """Train the first exits, and reply with what they need."""
        exits = int(task.values[EXITS])
        whole = dataclasses.replace(task, tensors=completed(task.index_map, task.tensors))
        model = network_of(local.build(whole))
        model.depth = exits
        held = only_exits(model, exits)
        try:
            result = local.fit(model, self.objective(local, task, model))
            reply = local.reply(model, result, peak_bytes=local.peak(held))
        finally:
            model.depth = model.exits  # the model may be used again, for another client or for statistics
        return dataclasses.replace(reply, tensors=shortened(model, exits, reply.tensors), parameters=parameters(held))

    def check_reply(self, context: MethodContext, state: ServerState, update: Update) -> None:
        """Also refuse values of what the client was not sent."""
        super().check_reply(context, state, update)
        for name, tensor in update.task.tensors.items():
            found = update.reply.tensors[name].shape
            if found != tensor.shape:
                raise InputError(f"{name} must be {list(tensor.shape)}; found {list(found)}")

    def trained_part(self, context: MethodContext, state: ServerState, update: Update) -> TrainedPart:
        """Return the compact model's entries, of which those that no exit of the client needs are not trained."""
        index_map, tensors = update.task.index_map, update.reply.tensors
        before, after = completed(index_map, update.task.tensors), completed(index_map, tensors)
        absent = {
            name: torch.zeros_like(after[name], dtype=torch.bool) for name in after if after[name] is not tensors[name]
        }
        return TrainedPart(index_map, before, after, absent)

    def rebase(self, context: MethodContext, state: ServerState, update: Update) -> Update | None:
        """Make the client's change to the weights of today, of which it still lacks the same."""
        moved = super().rebase(context, state, update)
        assert moved is not None
        network, exits = network_of(context.model), int(update.task.values[EXITS])
        task = dataclasses.replace(moved.task, tensors=shortened(network, exits, moved.task.tensors))
        reply = dataclasses.replace(moved.reply, tensors=shortened(network, exits, moved.reply.tensors))
        return dataclasses.replace(moved, task=task, reply=reply)

    def collect(self, context: MethodContext, state: ServerState) -> DepthCollector:
        """Average every entry over the clients that hold it, by their samples."""
        return DepthCollector(state)


class DepthCollector:
    """Averages every entry over the clients whose exits need it, weighted by their samples."""

    def __init__(self, state: ServerState) -> None:
        self._state = state
        self._sums = {name: torch.zeros_like(full, dtype=_sum_dtype(full)) for name, full in state.weights.items()}
        self._held = {name: torch.zeros_like(total, dtype=torch.float64) for name, total in self._sums.items()}

    def add(self, update: Update) -> None:
        """Fold one client's update in."""
        for name, place in update.task.index_map.tensors.items():
            value = update.reply.tensors[name].to(self._sums[name].dtype)
            if tuple(value.shape) == place.compact_shape:
                place.add(value, self._sums[name], update.client.samples)
                place.add(torch.ones_like(value, dtype=torch.float64), self._held[name], update.client.samples)

    def finish(self) -> ServerState:
        """Return the state that the next round starts from."""
        weights = {name: self._mean(name, full) for name, full in self._state.weights.items()}
        return dataclasses.replace(self._state, round=self._state.round + 1, weights=weights)

    def _mean(self, name: str, full: Tensor) -> Tensor:
        held = self._held[name]
        mean = torch.where(held > 0, self._sums[name] / held.clamp(min=1), full.to(self._sums[name].dtype))
        return (mean if full.is_floating_point() or full.is_complex() else mean.round()).to(full.dtype)


def _sum_dtype(full: Tensor) -> torch.dtype:
    return torch.complex128 if full.is_complex() else torch.float64


class MutualExits(Objective):
    """The cross-entropy of every exit, and the divergence of each from all others.

    Args:
        weight: of the divergence, a number on the model's device.
        exits: how many exits run.
    """

    def __init__(self, weight: Tensor, exits: int) -> None:
        self.tensors = {"weight": weight}
        self._exits = exits

    def constants(self) -> tuple[int]:
        """Return the number of exits, which decides what a step computes."""
        return (self._exits,)

    def loss(self, model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        """Return the mean loss over a batch."""
        logits = network_of(model).logits(inputs)
        losses = [functional.cross_entropy(each, labels) for each in logits]
        if len(logits) == 1:
            return losses[0]
        logs = [functional.log_softmax(each, dim=1) for each in logits]
        taught = [
            functional.kl_div(mine, other.detach(), reduction="batchmean", log_target=True)
            for place, mine in enumerate(logs)
            for other in (*logs[:place], *logs[place + 1 :])
        ]
        return torch.stack(losses).sum() + self.tensors["weight"] / (len(logits) - 1) * torch.stack(taught).sum()


def network_of(model: nn.Module) -> WithExits:
    """Return the model as what `DepthFL.prepare` made it."""
    return cast(WithExits, model)
