"""FIARSE: submodels of the largest magnitudes, which training moves away from the threshold (arXiv 2407.19389)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from hfp.methods.blocks import sparse
from hfp.methods.blocks.magnitude import ChannelPush, EntryPush, FilterRows
from hfp.methods.blocks.masked import masked_reply
from hfp.methods.blocks.selection import Scores, check_counts, check_own_weights, keep_best
from hfp.methods.interface.base import Method, moved_by, percents
from hfp.methods.interface.client_context import ClientContext
from hfp.methods.interface.registry import register
from hfp.methods.interface.values import Client, MethodContext, Reply, ServerState, State, Task, TrainedPart, Update
from hfp.reconstruct import Aggregator, Plan
from hfp.settings import setting

ACTIVE = "weights/active"


@register
@dataclass(frozen=True)
class FIARSE(Method):
    """A client keeps what is largest; gradients of kept magnitudes count more the nearer they are to the threshold.

    `structured`, a magnitude ``n`` is the Euclidean norm of a channel's filters over its coupled group. A client of
    ratio ``r`` keeps the largest of each group, and ``θ`` is the smallest norm that it keeps there. The part of the
    gradient along the channel's filters counts ``1 + 2 θ n / (n + θ)²`` times, the rest as it is. Compact submodels go
    down and come up. This form is ours: the paper masks single weights.

    Otherwise a magnitude is that of a single weight, and ``θ`` is one for the whole network, as in the paper. The
    client keeps as many weights as the submodel of its ratio would hold, the share ``(1 - r)²``. Values of kept weights
    and a bit a weight go down, values come up. Biases and batch-norm always stay; the authors' code masks biases too.

    An entry moves by the plain mean of the changes of those clients that trained it, times `server_rate`.
    """

    name: ClassVar[str] = "fiarse"
    source: ClassVar[str] = "Wu et al., NeurIPS 2024, arXiv 2407.19389"
    summary: ClassVar[str] = "each client trains what is largest; training moves magnitudes away from the threshold"

    structured: bool = setting(True, "Clients keep whole channels; else single weights, as in the paper.")
    server_rate: float = setting(
        1.0, "The global parameters move by this multiple of the clients' mean change.", within="(0, inf)"
    )

    @property
    def tells_entries(self) -> bool:
        """Clients that keep single weights answer with weights of their own choice."""
        return self.structured

    def removes(self, context: MethodContext) -> str:
        """Say which shares of the channels, or of the weights, clients leave out."""
        if self.structured:
            return super().removes(context)
        return f"{percents(1 - (1 - client.ratio) ** 2 for client in context.clients)} of the weights"

    def check(self, context: MethodContext) -> None:
        """Refuse ratios that empty a coupled group, or a model without weights to prune where weights go one by one."""
        if self.structured:
            check_counts(context)
            check_own_weights(self.name, context)
            FilterRows.of(context.groups, context.model)
        else:
            sparse.check_prunable(self.name, context.model)

    def start(self, context: MethodContext, weights: State) -> ServerState:
        """Start with the norms of the initial weights' channels, where channels are chosen."""
        return ServerState(0, weights, self.norms(context, weights))

    def plan(self, context: MethodContext, state: ServerState, client: Client) -> Plan:
        """Plan the channels of the largest norms, or all of them where weights go one by one."""
        if not self.structured:
            return context.groups.plan({})
        return keep_best(context.groups, client.ratio, state.method_state)

    def send(self, context: MethodContext, state: ServerState, client: Client, plan: Plan) -> Task:
        """Send the compact state, or the largest weights' values and where they are."""
        if self.structured:
            return super().send(context, state, client, plan)
        masks = largest_weights(state.weights, sparse.full_masks(context.model), (1 - client.ratio) ** 2)
        tensors = {**sparse.gather(state.weights, masks), ACTIVE: sparse.masks_to_bits(masks)}
        return Task(plan, context.groups.index_map(plan), tensors)

    def train(self, local: ClientContext, task: Task) -> Reply:
        """Train the submodel; the client finds the threshold in what it was sent."""
        if self.structured:
            rows = FilterRows.of(local.groups, local.model).inside(task.index_map)
            model = local.build(task)
            return local.reply(model, local.fit(model, ChannelPush(rows, thresholds(rows, task), local.device)))
        masks = sparse.masks_from_bits(task.tensors[ACTIVE], local.model)
        model = local.build(dataclasses.replace(task, tensors=sparse.scatter(task.tensors, masks, local.model)))
        smallest = torch.stack([task.tensors[name].abs().min() for name in masks if task.tensors[name].numel()]).min()
        return masked_reply(local, model, masks, local.fit(model, EntryPush(masks, smallest, local.device)), {})

    def extra_bytes(self, model: nn.Module) -> int:
        """Count the mask where weights go one by one: a byte for each weight."""
        return 0 if self.structured else sparse.mask_bytes(model)

    def norms(self, context: MethodContext, weights: State) -> Scores | None:
        """Compute the norms of each coupled group's channels, which decide what clients keep; None where weights do."""
        if not self.structured:
            return None
        rows = FilterRows.of(context.groups, context.model)
        return rows.by_group(rows.norms(weights))

    def collect(self, context: MethodContext, state: ServerState) -> TrainedMean:
        """Average the changes of an entry over the clients that trained it."""
        return TrainedMean(self, context, state)

    def trained_part(self, context: MethodContext, state: ServerState, update: Update) -> TrainedPart:
        """Return the compact model's entries, or the single weights that the client kept."""
        if self.structured:
            return super().trained_part(context, state, update)
        masks = sparse.masks_from_bits(update.task.tensors[ACTIVE], context.model)
        sent = {name: value for name, value in update.task.tensors.items() if name != ACTIVE}
        before, after = (sparse.scatter(part, masks, context.model) for part in (sent, update.reply.tensors))
        return TrainedPart(update.task.index_map, before, after, masks)

    def rebase(self, context: MethodContext, state: ServerState, update: Update) -> Update | None:
        """Make the client's change to the weights of today."""
        if self.structured:
            return super().rebase(context, state, update)
        bits = update.task.tensors[ACTIVE]
        now = sparse.gather(state.weights, sparse.masks_from_bits(bits, context.model))
        moved = moved_by(now, update.task.tensors, {name: update.reply.tensors[name] for name in now})
        task = dataclasses.replace(update.task, tensors={**now, ACTIVE: bits})
        return dataclasses.replace(update, task=task, reply=dataclasses.replace(update.reply, tensors=moved))


class TrainedMean:
    """Averages each entry over the clients that trained it; parameters go `server_rate` of the way to the mean."""

    def __init__(self, method: FIARSE, context: MethodContext, state: ServerState) -> None:
        self._method, self._context, self._state = method, context, state
        self._aggregator = Aggregator(state.weights, rule="holders")
        self._moved: dict[str, Tensor] = {}
        self._trained: dict[str, Tensor] = {}

    def add(self, update: Update) -> None:
        """Fold one client's update in."""
        part = self._method.trained_part(self._context, self._state, update)
        self._aggregator.add(part.after, part.index_map, weight=1)
        for name, mask in part.active.items():
            moved = (part.after[name] - part.before[name]).to(self._state.weights[name])
            self._moved[name] = self._moved.get(name, 0) + moved
            self._trained[name] = self._trained.get(name, 0) + mask.to(moved)

    def finish(self) -> ServerState:
        """Return the state that the next round starts from."""
        before, after = self._state.weights, self._aggregator.finish()
        for name, moved in self._moved.items():
            after[name] = before[name] + moved / self._trained[name].clamp(min=1)
        if self._method.server_rate != 1:
            for name in self._context.parameters:
                after[name] = before[name] + self._method.server_rate * (after[name] - before[name])
            after = self._context.shared(after)
        return ServerState(self._state.round + 1, after, self._method.norms(self._context, after))


def largest_weights(weights: State, masks: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """Return masks of the largest weights of the whole network, as many as the share asks for and at least one.

    Of equal weights the first are taken, in the order of `masks`.
    """
    magnitudes = torch.cat([weights[name].abs().reshape(-1) for name in masks])
    kept = torch.zeros(len(magnitudes), dtype=torch.bool, device=magnitudes.device)
    kept[magnitudes.argsort(descending=True, stable=True)[: max(1, round(share * len(magnitudes)))]] = True
    parts = kept.split([mask.numel() for mask in masks.values()])
    return {name: part.reshape(mask.shape) for (name, mask), part in zip(masks.items(), parts, strict=True)}


def thresholds(rows: FilterRows, task: Task) -> Tensor:
    """Find ``θ`` of each channel, `[total]`: the smallest norm of its group's channels that a task has."""
    norms, there = rows.norms(task.tensors), torch.zeros(rows.total + 1, dtype=torch.bool)
    for own in rows.channels.values():
        there[own.cpu()] = True
    held = norms.masked_fill(~there[:-1].to(norms.device), torch.inf)
    smallest = [part.min().expand(len(part)) for part in rows.by_group(held).values()]
    found = torch.cat(smallest)
    return torch.where(found.isfinite(), found, 0)
