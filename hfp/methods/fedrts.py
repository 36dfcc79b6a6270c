"""FedRTS: one mask of single weights for all clients, adapted by Thompson sampling (arXiv 2501.19122)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from hfp.errors import InputError
from hfp.methods.blocks import sparse
from hfp.methods.blocks.masked import MaskedGradients, masked_reply
from hfp.methods.blocks.sparse import Masks
from hfp.methods.interface.base import Method, percents
from hfp.methods.interface.client_context import ClientContext
from hfp.methods.interface.registry import register
from hfp.methods.interface.values import Client, MethodContext, Reply, ServerState, State, Task, TrainedPart, Update
from hfp.reconstruct import Aggregator, Plan
from hfp.seeds import derive
from hfp.settings import setting

ACTIVE = "weights/active"
GROWN = "weights/grown"


@dataclass(frozen=True)
class FedRTSState:
    """The mask, the two counts of every weight's Beta distribution, and which clients have the mask."""

    masks: Masks
    kept: State
    dropped: State
    holders: frozenset[int] = frozenset()


@register
@dataclass(frozen=True)
class FedRTS(Method):
    """Each weight has a distribution Beta(α, β) of being worth its place; the mask is drawn from these.

    A layer of ``n`` weights has ``K`` active ones, the same number in all rounds and the same share in all layers. In
    round ``t`` of the first ``T``, a readjustment exchanges ``k = K · (exchange / 2) (1 + cos(π t / T))`` of them. What
    a round says of a weight is its outcome ``o``:

    - an active one, in every round: ``o = (1 - γ) [it is among the K - k largest of the mean] + γ Σ p_k [it is among
      client k's K - k largest]``;
    - another one, in a readjustment: ``o = (1 - γ) / 2 + γ Σ p_k [it is among client k's k largest gradients]``.

    Then ``α += λ o`` and ``β += λ (1 - o)``. In a readjustment every weight draws from its Beta, and the ``K`` largest
    draws of a layer are active from then on; weights that become active start at zero.

    How a client's gradients are measured is not said in the paper: here they are summed over the round's local steps,
    which costs no further pass; the authors' library takes those of one more batch. The first mask is random.

    Payload: values of active weights; a bit a weight for a client that hasn't the mask yet, and up in a readjustment.
    """

    name: ClassVar[str] = "fedrts"
    source: ClassVar[str] = "Huang et al., NeurIPS 2025, arXiv 2501.19122"
    summary: ClassVar[str] = "one unstructured mask for all, drawn anew from what rounds said of each weight"

    extra_tensor_prefixes: ClassVar[tuple[str, ...]] = (GROWN,)
    keeps_size: ClassVar[bool] = True

    every: int = setting(10, "The mask is readjusted after every so many rounds.", within="[1, inf)", unit="rounds")
    exchange: float = setting(
        0.4, "The first readjustment would exchange this share of a layer's active weights.", within="[0, 1]"
    )
    until: int | None = setting(
        None,
        "Readjustments end after this many rounds; by default they go on to the end of the run.",
        kind=int,
        within="[1, inf)",
        unit="rounds",
    )
    client_share: float = setting(0.5, "The clients' own rankings count with this weight γ.", within="[0, 1]")
    strength: float = setting(1.0, "A round adds this weight λ to the counts of a weight.", within="(0, inf)")
    density: float | None = setting(
        None,
        "This share of the weights is active; by default it is what the clients' submodels would hold.",
        kind=float,
        within="(0, 1]",
    )

    @property
    def uses_ratios(self) -> bool:
        """Only the default density follows from ratios."""
        return self.density is None

    def removes(self, context: MethodContext) -> str:
        """Say which share of the weights no mask keeps."""
        return f"{percents([1 - sparse.density_of(context, self.density)])} of the weights"

    def check(self, context: MethodContext) -> None:
        """Refuse a model without weights to prune."""
        sparse.check_prunable(self.name, context.model)

    def start(self, context: MethodContext, weights: State) -> ServerState:
        """Start with a random mask and uniform distributions."""
        full = sparse.full_masks(context.model)
        device = next(iter(weights.values())).device
        ones = {name: torch.ones(mask.shape, device=device) for name, mask in full.items()}
        counts = {name: self._active(context, mask.numel()) for name, mask in full.items()}
        masks = drawn(ones, ones, counts, derive(context.seed, "thompson", 0))
        return ServerState(0, sparse.cleared(weights, masks), FedRTSState(masks, ones, ones))

    def phase(self, state: ServerState) -> str:
        """Return ``adapt`` where the round readjusts the mask, and else ``train``."""
        return "adapt" if self._adapts(state.round) else "train"

    def plan(self, context: MethodContext, state: ServerState, client: Client) -> Plan:
        """Plan all channels, because weights go one by one."""
        return context.groups.plan({})

    def send(self, context: MethodContext, state: ServerState, client: Client, plan: Plan) -> Task:
        """Send the active weights' values, and the mask unless the client has it."""
        index_map, masks = context.groups.index_map(plan), state.method_state.masks
        values, bits = sparse.gather(state.weights, masks), {ACTIVE: sparse.masks_to_bits(masks)}
        asked = {"exchange": self.share(context, state.round) if self._adapts(state.round) else 0.0}
        if client.index in state.method_state.holders:
            return Task(plan, index_map, values, asked, known=bits)
        return Task(plan, index_map, {**values, **bits}, asked)

    def train(self, local: ClientContext, task: Task) -> Reply:
        """Train under the mask; in a readjustment say where gradients are largest."""
        masks = sparse.masks_from_bits({**task.known, **task.tensors}[ACTIVE], local.model)
        model = local.build(dataclasses.replace(task, tensors=sparse.scatter(task.tensors, masks, local.model)))
        share = task.values["exchange"]
        objective = MaskedGradients(masks, local.device, measure=share > 0)
        result = local.fit(model, objective)
        also = {GROWN: sparse.masks_to_bits(largest(objective.sums(), masks, share))} if share else {}
        return masked_reply(local, model, masks, result, also)

    def keep(self, task: Task, reply: Reply) -> State:
        """Keep the mask, so that it is sent only once."""
        return {ACTIVE: {**task.known, **task.tensors}[ACTIVE]}

    def extra_bytes(self, model: nn.Module) -> int:
        """Count the mask, of a byte for each weight."""
        return sparse.mask_bytes(model)

    def check_reply(self, context: MethodContext, state: ServerState, update: Update) -> None:
        """Also refuse a reply that names other than its share of inactive weights in a readjustment."""
        super().check_reply(context, state, update)
        share, masks = update.task.values["exchange"], state.method_state.masks
        if (GROWN in update.reply.tensors) != bool(share):
            raise InputError(f"the reply {'lacks' if share else 'must not have'} {GROWN}")
        if not share:
            return
        for name, grown in sparse.masks_from_bits(update.reply.tensors[GROWN].cpu(), context.model).items():
            mask = masks[name].cpu()
            if int(grown.sum()) != exchanged(mask, share) or bool((grown & mask).any()):
                raise InputError(
                    f"{GROWN} must name {exchanged(mask, share)} inactive weights of {name}; found {int(grown.sum())}"
                )

    def collect(self, context: MethodContext, state: ServerState) -> ThompsonCollector:
        """Average the active weights by samples, and count what that says of every weight."""
        return ThompsonCollector(self, context, state)

    def trained_part(self, context: MethodContext, state: ServerState, update: Update) -> TrainedPart:
        """Return the active weights, before and after."""
        model, masks = context.model, state.method_state.masks
        before, after = (sparse.scatter(part, masks, model) for part in (update.task.tensors, update.reply.tensors))
        return TrainedPart(update.task.index_map, before, after, masks)

    def rebase(self, context: MethodContext, state: ServerState, update: Update) -> None:
        """Return None: a late update is of no use, because the mask may have changed since."""
        return

    def share(self, context: MethodContext, round: int) -> float:
        """Compute which share of a layer's active weights a readjustment in a round would exchange."""
        last = self.until or context.rounds
        return self.exchange / 2 * (1 + math.cos(math.pi * min(round / last, 1.0)))

    def _adapts(self, round: int) -> bool:
        return round > 0 and round % self.every == 0 and (self.until is None or round < self.until)

    def _active(self, context: MethodContext, weights: int) -> int:
        """Count the weights of a layer that are active."""
        return max(1, round(sparse.density_of(context, self.density) * weights))


class ThompsonCollector:
    """Averages active weights by samples, counts what clients rank highest, and draws a new mask when it is time."""

    def __init__(self, method: FedRTS, context: MethodContext, state: ServerState) -> None:
        self._method, self._context, self._state = method, context, state
        self._share = method.share(context, state.round)
        self._aggregator = Aggregator(state.weights, rule="fill")
        masks = state.method_state.masks
        self._votes = {name: torch.zeros(mask.shape, device=mask.device) for name, mask in masks.items()}
        self._samples = 0
        self._clients: frozenset[int] = frozenset()

    def add(self, update: Update) -> None:
        """Fold one client's update in."""
        masks, model, weight = self._state.method_state.masks, self._context.model, update.client.samples
        state = sparse.scatter(update.reply.tensors, masks, model)
        self._aggregator.add(state, update.task.index_map, weight=weight)
        for name, vote in self._staying(state).items():
            self._votes[name].add_(vote, alpha=weight)
        if GROWN in update.reply.tensors:
            for name, grown in sparse.masks_from_bits(update.reply.tensors[GROWN], model).items():
                self._votes[name].add_(grown.to(self._votes[name].device), alpha=weight)
        self._samples += weight
        self._clients |= {update.client.index}

    def finish(self) -> ServerState:
        """Return the state that the next round starts from. No client holds a mask that is new."""
        method, state, told = self._method, self._state, self._state.method_state
        weights, adapts = self._aggregator.finish(), method.phase(self._state) == "adapt"
        kept, dropped = {}, {}
        for name, top in self._staying(weights).items():
            mask, votes = told.masks[name], self._votes[name] / self._samples
            ours = torch.where(mask, top.to(votes), 0.5)
            outcome = (1 - method.client_share) * ours + method.client_share * votes
            heard = torch.ones_like(mask) if adapts else mask
            kept[name] = told.kept[name] + method.strength * outcome * heard
            dropped[name] = told.dropped[name] + method.strength * (1 - outcome) * heard
        masks, holders = told.masks, told.holders | self._clients
        if adapts:
            counts = {name: int(mask.sum()) for name, mask in masks.items()}
            masks = drawn(kept, dropped, counts, derive(self._context.seed, "thompson", state.round))
            weights, holders = sparse.cleared(weights, masks), frozenset()
        return ServerState(state.round + 1, weights, FedRTSState(masks, kept, dropped, holders))

    def _staying(self, state: State) -> dict[str, Tensor]:
        """Return masks of what one model would keep: all but the smallest of the active weights in each layer."""
        masks = self._state.method_state.masks
        return {
            name: top(state[name].abs(), mask, int(mask.sum()) - exchanged(mask, self._share))
            for name, mask in masks.items()
        }


def exchanged(mask: Tensor, share: float) -> int:
    """Count the weights of a layer that a readjustment exchanges, no more than there are inactive ones."""
    active = int(mask.sum())
    return min(int(share * active), mask.numel() - active)


def largest(gradients: Mapping[str, Tensor], masks: Masks, share: float) -> dict[str, Tensor]:
    """Return masks of the inactive weights with the largest gradients, in each layer as many as are exchanged."""
    return {
        name: top(gradients[name].abs(), ~mask.to(gradients[name].device), exchanged(mask, share))
        for name, mask in masks.items()
    }


def top(values: Tensor, among: Tensor, count: int) -> Tensor:
    """Return a mask of the `count` largest values where `among` is true; of equal ones the first."""
    order = values.masked_fill(~among.to(values.device), -torch.inf).reshape(-1).argsort(descending=True, stable=True)
    found = torch.zeros(values.numel(), dtype=torch.bool, device=values.device)
    found[order[:count]] = True
    return found.reshape(values.shape)


def drawn(kept: State, dropped: State, counts: Mapping[str, int], seed: int) -> dict[str, Tensor]:
    """Draw masks of the largest draws from ``Beta(kept, dropped)``; on the processor, where all runs draw alike."""
    random, masks = np.random.default_rng(seed), {}
    for name, successes in kept.items():
        drawn = random.beta(successes.cpu().double().numpy(), dropped[name].cpu().double().numpy())
        values = torch.from_numpy(np.asarray(drawn))
        masks[name] = top(values, torch.ones(values.shape, dtype=torch.bool), counts[name]).to(successes.device)
    return masks
