"""DapperFL: clients train the full model for a while, prune it themselves and train on (arXiv 2412.05823)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from hfp.costs.macs import TRAINING_FACTOR
from hfp.errors import InputError
from hfp.methods.blocks.bits import from_bits, to_bits
from hfp.methods.blocks.filters import filter_scores
from hfp.methods.blocks.selection import check_counts, keep_best
from hfp.methods.interface.base import Method
from hfp.methods.interface.client_context import ClientContext
from hfp.methods.interface.registry import register
from hfp.methods.interface.values import Client, MethodContext, Reply, ServerState, State, Task, TrainedPart, Update
from hfp.models import classifier_of
from hfp.reconstruct import Aggregator, Coupling, Plan
from hfp.settings import setting
from hfp.training.local_step import Objective, joined

KEPT = "channels/kept"
FUSION: Mapping[str, str] = MappingProxyType(
    {
        "later": "from the second round on, as the authors' code sets out to do",
        "always": "in every round, as the paper says",
        "never": "in none, which is what the authors' code comes to: it removes its masks after fusing, and with that "
        "the fused weights",
    }
)


@register
@dataclass(frozen=True)
class DapperFL(Method):
    """DapperFL's clients train the full model, fuse it with the global one, prune it by l1 and train what is left.

    Fusing computes ``w_k ← α_t w_t + (1 - α_t) w_k`` with ``α_t = max((1 - decay)^t · first, least)``, in the rounds
    that `fusion` says. The first local epoch is dense. Where it is the only one, clients send what they then prune, as
    in the authors' code, unless `halves` is set. The local loss adds `regularisation` times the mean length of the
    features that enter the classifier.

    The full model is sent to the clients. They reply with the compact one and one bit per channel. In the mean, which
    is weighted by samples, what a client pruned counts as unchanged.
    """

    name: ClassVar[str] = "dapperfl"
    source: ClassVar[str] = "Jia et al., NeurIPS 2024, arXiv 2412.05823"
    summary: ClassVar[str] = (
        "clients get the full model, train and fuse it, prune it by l1 themselves, train what is left"
    )

    extra_tensor_prefixes: ClassVar[tuple[str, ...]] = (KEPT,)

    fusion: str = setting(
        "later", "The trained weights are fused with the global ones in these rounds.", choices=FUSION
    )
    halves: bool = setting(
        False, "Where there is one local epoch, its second half trains the pruned model; else nothing does."
    )
    first: float = setting(0.9, "The global model would have this share in the first round's fusion.", within="[0, 1]")
    decay: float = setting(0.2, "The global model loses this part of its share from round to round.", within="[0, 1]")
    least: float = setting(0.1, "The global model keeps at least this share in the fusion.", within="[0, 1]")
    regularisation: float = setting(
        0.01, "The local loss counts the mean length of the classifier's input with this weight.", within="[0, inf)"
    )

    def check(self, context: MethodContext) -> None:
        """Refuse ratios that leave a client without channels in a coupled group."""
        check_counts(context)

    def plan(self, context: MethodContext, state: ServerState, client: Client) -> Plan:
        """Plan the full model, because the client prunes it itself."""
        return context.groups.plan({})

    def send(self, context: MethodContext, state: ServerState, client: Client, plan: Plan) -> Task:
        """Send the full state, and the global model's share in the fusion."""
        index_map = context.groups.index_map(plan)
        return Task(plan, index_map, index_map.restrict(state.weights), {"share": self._share(state.round)})

    def train(self, local: ClientContext, task: Task) -> Reply:
        """Train the full model, fuse it, prune it, and train what is left."""
        schedule = local.schedule()
        dense_steps = len(schedule) // max(local.training.epochs, 2 if self.halves else 1)
        full = local.build(task)
        dense = local.fit(full, self.objective(local, task, full), schedule[:dense_steps])
        fused = fuse(task.tensors, full.state_dict(), task.values["share"])
        plan = keep_best(local.groups, local.client.ratio, filter_scores(local.groups, local.model, fused))
        index_map = local.groups.index_map(plan)
        model = local.model_of(index_map, index_map.restrict(fused))
        pruned = local.fit(model, self.objective(local, task, model), schedule[dense_steps:])
        work = local.count(full) * dense.samples + local.count(model) * pruned.samples
        return local.reply(
            model,
            joined([dense, pruned]),
            also={KEPT: kept_bits(plan)},
            training_macs=TRAINING_FACTOR * work,
            peak_bytes=local.peak(full),
        )

    def trained_part(self, context: MethodContext, state: ServerState, update: Update) -> TrainedPart:
        """Return the channels that the client kept; before the round they were the global model's."""
        if KEPT not in update.reply.tensors:
            raise InputError(f"the reply lacks {KEPT}")
        after = {name: tensor for name, tensor in update.reply.tensors.items() if name != KEPT}
        index_map = context.groups.index_map(kept_plan(context.groups, update.reply.tensors[KEPT].cpu()))
        return TrainedPart(index_map, index_map.restrict(update.task.tensors), after)

    def _share(self, round: int) -> float:
        """``α_t``, the global model's share; 0 where nothing is fused."""
        if self.fusion == "never" or (self.fusion == "later" and round == 0):
            return 0.0
        return max((1 - self.decay) ** round * self.first, self.least)

    def objective(self, local: ClientContext, task: Task, model: nn.Module) -> Objective:
        """Minimise cross-entropy and the length of the features."""
        return ShortFeatures(model, self.regularisation)

    def collect(self, context: MethodContext, state: ServerState) -> PrunedByClient:
        """Average the compact models, with the global values for what a client pruned."""
        return PrunedByClient(context, state)


class PrunedByClient:
    """Averages compact models, whose channels the clients chose, by samples. What they pruned counts as unchanged."""

    def __init__(self, context: MethodContext, state: ServerState) -> None:
        self._groups, self._state = context.groups, state
        self._aggregator = Aggregator(state.weights, rule="fill")

    def add(self, update: Update) -> None:
        """Fold one client's update in."""
        tensors = dict(update.reply.tensors)
        plan = kept_plan(self._groups, tensors.pop(KEPT).cpu())
        self._aggregator.add(tensors, self._groups.index_map(plan), weight=update.client.samples)

    def finish(self) -> ServerState:
        """Return the state that the next round starts from."""
        return ServerState(self._state.round + 1, self._aggregator.finish(), self._state.method_state)


class ShortFeatures(Objective):
    """Cross-entropy plus `weight` times the mean Euclidean length of the features that enter the classifier.

    Args:
        model: the model to train; it is given a hook.
        weight: the weight of the length.
    """

    def __init__(self, model: nn.Module, weight: float) -> None:
        self._weight = weight
        self._features: Tensor | None = None
        head = classifier_of(model)
        layer = head[0] if isinstance(head, nn.ModuleList) else head
        layer.register_forward_pre_hook(self._remember)

    def constants(self) -> tuple[float]:
        """Return the weight. The hook is the same for all models of one shape."""
        return (self._weight,)

    def loss(self, model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        """Return the mean loss over a batch."""
        loss = functional.cross_entropy(model(inputs), labels)
        if self._features is None:
            raise InputError("dapperfl shortens the features that enter the classifier, which this model doesn't call")
        features, self._features = self._features, None
        return loss + self._weight * features.flatten(1).norm(dim=1).mean()

    def _remember(self, _module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._features = inputs[0]


def fuse(received: State, trained: State, share: float) -> dict[str, Tensor]:
    """Mix `share` of the received values with the rest of the trained ones; integers stay as trained."""
    return {
        name: torch.lerp(value, received[name].to(value.device), share)
        if value.is_floating_point() or value.is_complex()
        else value
        for name, value in trained.items()
    }


def kept_bits(plan: Plan) -> Tensor:
    """Pack one bit for every channel of every coupled group, in their order, which says whether the plan keeps it."""
    masks = [torch.zeros(size, dtype=torch.bool) for size in plan.sizes.values()]
    for mask, kept in zip(masks, (plan.kept[name] for name in plan.sizes), strict=True):
        mask[list(kept)] = True
    return to_bits(torch.cat(masks))


def kept_plan(groups: Coupling, bits: Tensor) -> Plan:
    """Unpack the plan that `kept_bits` was given.

    Raises:
        MapError: a group has no channels left, or lacks only some of those that must go together.
    """
    sizes: Mapping[str, int] = groups.sizes
    parts = from_bits(bits, (sum(sizes.values()),)).split(list(sizes.values()))
    return groups.plan({name: part.nonzero().view(-1) for name, part in zip(sizes, parts, strict=True)})
