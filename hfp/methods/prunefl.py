"""PruneFL: one mask of single weights for all clients, found by one client and adapted by all (arXiv 1909.12326)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice, repeat
from typing import ClassVar

import torch
from torch import Tensor, nn

from hfp.costs.macs import TRAINING_FACTOR, macs_per_weight
from hfp.errors import InputError
from hfp.methods.blocks import sparse
from hfp.methods.blocks.masked import MaskedGradients, masked_macs, masked_reply
from hfp.methods.blocks.reconfigure import reconfigure
from hfp.methods.blocks.sparse import Masks
from hfp.methods.interface.base import Method, percents
from hfp.methods.interface.client_context import ClientContext
from hfp.methods.interface.registry import register
from hfp.methods.interface.values import Client, MethodContext, Reply, ServerState, State, Task, TrainedPart, Update
from hfp.reconstruct import Aggregator, Plan
from hfp.settings import setting
from hfp.training.local_step import LocalResult, joined

ACTIVE = "weights/active"
SQUARES = "squares/"


@dataclass(frozen=True)
class PruneFLState:
    """What the server remembers between rounds.

    Args:
        uses: how often a weight of each layer is used in a forward pass.
        masks: the active weights, None until a mask is found.
        holders: the clients that have this mask.
    """

    uses: Mapping[str, int]
    masks: Masks | None = None
    holders: frozenset[int] = frozenset()


@register
@dataclass(frozen=True)
class PruneFL(Method):
    """PruneFL lets the client with the most samples find a mask of single weights, which all clients then train under.

    That client trains `passes` batches and reconfigures the mask (`hfp.methods.blocks.reconfigure`), again and again.
    It stops when no more weights are active than `density` allows, when the density has changed by no more than the
    relative `tolerance` for `patience` times in a row, or after `limit` times. The stop at `density` is not the
    paper's: without it, one client with little data may leave less than a hundredth of the weights.

    Afterwards all clients train the active weights, and the mask is adapted after every `every` rounds. In a round
    that ends with a new mask, clients also send the square of every weight's mean gradient over the round's steps.
    Adapting reconsiders the share ``share · 0.5^(round / halving)`` of a layer's active weights.

    The default of `density` is the mean of the clients' ``(1 - ratio)²``, which is what their submodels would hold. A
    weight's time is the number of multiply-accumulates that it takes part in; `overhead` is the time of a round that
    does not depend on the weights, in units of the dense model's time. Biases and batch-norm are never pruned.

    A message has the values of the active weights. It has one bit per weight too, for a client that lacks the mask and
    in the reply that found one, and squared gradients where they were measured. Multiply-accumulates are counted as if
    zeros cost nothing.

    A deadline does not bind the client that finds the mask: without it no round could follow. Where that client drops
    out or fails, the one with the next most samples tries in the next round.
    """

    name: ClassVar[str] = "prunefl"
    source: ClassVar[str] = "Jiang et al., TNNLS 2022, arXiv 1909.12326"
    summary: ClassVar[str] = "one unstructured mask for all, adapted by squared gradients per unit of time"

    extra_tensor_prefixes: ClassVar[tuple[str, ...]] = (ACTIVE, SQUARES)
    keeps_size: ClassVar[bool] = True

    every: int = setting(
        50,
        "The mask is adapted after every so many rounds.",
        within="[1, inf)",
        unit="rounds",
    )
    share: float = setting(
        0.3, "Adapting reconsiders this share of a layer's active weights in the first round.", within="[0, 1]"
    )
    halving: float = setting(
        10_000.0, "The share that is reconsidered halves in this many rounds.", within="(0, inf)", unit="rounds"
    )
    density: float | None = setting(
        None,
        "At most this share of the weights is active; by default it is what the clients' submodels would hold.",
        kind=float,
        within="(0, 1]",
    )
    overhead: float = setting(
        1.0,
        "A round takes this time beside the weights', in units of the dense model's time.",
        within="(0, inf)",
    )
    passes: int = setting(
        50, "The first client trains this many batches before it reconfigures.", within="[1, 1000000]", unit="batches"
    )
    patience: int = setting(
        5, "The first client stops after this many reconfigurations that change little.", within="[1, inf)"
    )
    tolerance: float = setting(
        0.1, "A reconfiguration changes little where the density changes by at most this part.", within="[0, inf)"
    )
    limit: int = setting(20, "The first client reconfigures at most this many times.", within="[1, inf)")

    @property
    def uses_ratios(self) -> bool:
        """Only the default density follows from ratios."""
        return self.density is None

    def removes(self, context: MethodContext) -> str:
        """Say which share of the weights no mask keeps."""
        return f"at least {percents([1 - sparse.density_of(context, self.density)])} of the weights"

    def check(self, context: MethodContext) -> None:
        """Refuse a model without weights to prune."""
        sparse.check_prunable(self.name, context.model)

    def start(self, context: MethodContext, weights: State) -> ServerState:
        """Start without a mask."""
        return ServerState(0, weights, PruneFLState(macs_per_weight(context.model, context.example)))

    def select(self, context: MethodContext, state: ServerState, clients: Sequence[Client]) -> Sequence[Client]:
        """Select the client with the most samples to find a mask, in the next round another if it failed; then all."""
        if state.method_state.masks is not None:
            return clients
        ranked = sorted(clients, key=lambda client: client.samples, reverse=True)
        return [ranked[state.round % len(ranked)]]

    def waits_for_all(self, state: ServerState) -> bool:
        """The first client's mask is waited for: it trains for many batches, and nothing can follow without it."""
        return state.method_state.masks is None

    def phase(self, state: ServerState) -> str:
        """Return ``initial`` until there is a mask, ``adapt`` where the round adapts it, and else ``train``."""
        if state.method_state.masks is None:
            return "initial"
        return "train" if state.round % self.every else "adapt"

    def plan(self, context: MethodContext, state: ServerState, client: Client) -> Plan:
        """Plan all channels, because weights are pruned one by one."""
        return context.groups.plan({})

    def send(self, context: MethodContext, state: ServerState, client: Client, plan: Plan) -> Task:
        """Send the active weights' values, and the mask unless the client has it."""
        index_map, method_state = context.groups.index_map(plan), state.method_state
        if method_state.masks is None:
            return Task(plan, index_map, index_map.restrict(state.weights), {"most": self.most(context)})
        values, bits = (
            sparse.gather(state.weights, method_state.masks),
            {ACTIVE: sparse.masks_to_bits(method_state.masks)},
        )
        measure = {"measure": float(state.round % self.every == 0)}
        if client.index in method_state.holders:
            return Task(plan, index_map, values, measure, known=bits)
        return Task(plan, index_map, {**values, **bits}, measure)

    def train(self, local: ClientContext, task: Task) -> Reply:
        """Find a mask, or train under the one that is there."""
        if "most" in task.values:
            return self._find(local, task)
        masks = sparse.masks_from_bits({**task.known, **task.tensors}[ACTIVE], local.model)
        model = local.build(dataclasses.replace(task, tensors=sparse.scatter(task.tensors, masks, local.model)))
        objective = MaskedGradients(masks, local.device, measure=bool(task.values["measure"]))
        result = local.fit(model, objective)
        squares = {SQUARES + name: (total / max(result.steps, 1)).square() for name, total in objective.sums().items()}
        return masked_reply(local, model, masks, result, squares)

    def keep(self, task: Task, reply: Reply) -> State:
        """Keep the mask, so that it is sent only once."""
        return {ACTIVE: {**task.known, **task.tensors, **reply.tensors}[ACTIVE]}

    def most_steps(self, state: ServerState, steps: int) -> int:
        """Alone, a client trains up to `passes` batches before each of up to `limit` reconfigurations."""
        return steps if state.method_state.masks is not None else self.passes * self.limit

    def extra_bytes(self, model: nn.Module) -> int:
        """Count the mask, of a byte for each weight."""
        return sparse.mask_bytes(model)

    def check_reply(self, context: MethodContext, state: ServerState, update: Update) -> None:
        """Also refuse a reply that lacks the mask or the squares that the task asks for."""
        tensors = update.reply.tensors
        if state.method_state.masks is None and ACTIVE not in tensors:
            raise InputError(f"the reply lacks {ACTIVE}")
        super().check_reply(context, state, update)
        squares = _unprefixed(tensors)
        measured = sparse.full_masks(context.model) if update.task.values.get("measure") else {}
        if squares.keys() != measured.keys():
            raise InputError(f"the reply must have squares of {len(measured)} layers; found {len(squares)}")
        for name, square in squares.items():
            if square.shape != measured[name].shape or not bool((square >= 0).all()):
                raise InputError(f"{SQUARES}{name} must be squares of shape {list(measured[name].shape)}")

    def collect(self, context: MethodContext, state: ServerState) -> MaskedCollector:
        """Average the active weights by samples, and adapt the mask where it is time."""
        return MaskedCollector(self, context, state)

    def trained_part(self, context: MethodContext, state: ServerState, update: Update) -> TrainedPart:
        """Return the active weights, before and after."""
        model, masks = context.model, state.method_state.masks
        if masks is None:
            masks = sparse.masks_from_bits(update.reply.tensors[ACTIVE], model)
            before = update.task.tensors
        else:
            before = sparse.scatter(update.task.tensors, masks, model)
        return TrainedPart(update.task.index_map, before, sparse.scatter(update.reply.tensors, masks, model), masks)

    def rebase(self, context: MethodContext, state: ServerState, update: Update) -> None:
        """Return None: a late update is of no use, because the mask may have changed since."""
        return

    def most(self, context: MethodContext) -> int:
        """Count how many weights may be active."""
        density = sparse.density_of(context, self.density)
        return round(density * sparse.count(sparse.full_masks(context.model)))

    def adapt(
        self, state: State, squares: Masks, masks: Masks, uses: Mapping[str, int], most: int, round: int
    ) -> dict[str, Tensor]:
        """Reconfigure the masks by the weights and the measured squares; `most` weights may be active."""
        device = next(iter(masks.values())).device
        weights = {name: state[name] for name in masks}
        found = reconfigure(  # on the processor, where sums over all weights have one order
            _on_cpu(weights),
            _on_cpu(squares),
            _on_cpu(masks),
            uses,
            overhead=self.overhead * sum(uses[name] * mask.numel() for name, mask in masks.items()),
            share=self.share * 0.5 ** (round / self.halving),
            most=most,
        )
        return {name: mask.to(device) for name, mask in found.items()}

    def _find(self, local: ClientContext, task: Task) -> Reply:
        """Train and reconfigure until the density is what it may be, or no longer changes."""
        model, masks = local.build(task), sparse.full_masks(local.model)
        uses, total = macs_per_weight(local.model, local.count.example), sparse.count(masks)
        endless = chain.from_iterable(local.schedule() for _ in repeat(None))
        results: list[LocalResult] = []
        work, settled, most, reached = 0, 0, int(task.values["most"]), False
        while len(results) < self.limit and settled < self.patience and not reached:
            objective = MeasuredSquares(masks, local.device)
            result = local.fit(model, objective, list(islice(endless, self.passes)))
            results.append(result)
            work += masked_macs(local, model, masks) * result.samples
            before, squares = sparse.count(masks), objective.squares(result.steps)
            state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
            masks = self.adapt(state, squares, masks, uses, most, local.round)
            model.load_state_dict(sparse.cleared(state, masks))
            reached = sparse.count(masks) <= most < total
            settled = settled + 1 if abs(sparse.count(masks) - before) <= self.tolerance * before else 0
        also = {ACTIVE: sparse.masks_to_bits(masks)}
        return masked_reply(local, model, masks, joined(results), also, training_macs=TRAINING_FACTOR * work)


class MeasuredSquares(MaskedGradients):
    """Cross-entropy whose gradients reach active weights alone, and sums of the squared gradients of all weights.

    Args:
        masks: the active weights.
        device: where the model is.
    """

    def __init__(self, masks: Masks, device: torch.device) -> None:
        super().__init__(masks, device)
        sums = {SQUARES + name: torch.zeros(mask.shape, device=device) for name, mask in masks.items()}
        self.tensors = {**self.tensors, **sums}

    def gradients(self, model: nn.Module) -> None:
        """Square the gradients, then mask them."""
        for name, parameter in model.named_parameters():
            if SQUARES + name in self.tensors and parameter.grad is not None:
                self.tensors[SQUARES + name].add_(parameter.grad.square())
        super().gradients(model)

    def squares(self, steps: int) -> dict[str, Tensor]:
        """Return the mean squares of a step's gradients, by parameter name."""
        return {name: total / steps for name, total in _unprefixed(self.tensors).items()}


class MaskedCollector:
    """Averages active weights and measured squares by samples, one client at a time, and adapts the mask."""

    def __init__(self, method: PruneFL, context: MethodContext, state: ServerState) -> None:
        self._method, self._context, self._state = method, context, state
        self._masks = state.method_state.masks
        self._aggregator = Aggregator(state.weights, rule="fill")
        self._squares: dict[str, Tensor] = {}
        self._samples = 0
        self._clients: frozenset[int] = frozenset()

    def add(self, update: Update) -> None:
        """Fold one client's update in."""
        tensors, model, weight = update.reply.tensors, self._context.model, update.client.samples
        if self._masks is None:
            self._masks = sparse.masks_from_bits(tensors[ACTIVE], model)
        for name, square in _unprefixed(tensors).items():
            self._squares[name] = self._squares.get(name, torch.zeros_like(square)).add(square, alpha=weight)
        self._aggregator.add(sparse.scatter(tensors, self._masks, model), update.task.index_map, weight=weight)
        self._samples += weight
        self._clients |= {update.client.index}

    def finish(self) -> ServerState:
        """Return the state that the next round starts from. No client holds a mask that is new."""
        state, method_state, weights = self._state, self._state.method_state, self._aggregator.finish()
        masks, holders = self._masks, method_state.holders | self._clients
        if any(bool(total.any()) for total in self._squares.values()):  # squares that are all zero say nothing
            squares = {name: total / self._samples for name, total in self._squares.items()}
            most = self._method.most(self._context)
            masks = self._method.adapt(weights, squares, masks, method_state.uses, most, state.round)
            weights, holders = sparse.cleared(weights, masks), frozenset()
        return ServerState(state.round + 1, weights, PruneFLState(method_state.uses, masks, holders))


def _unprefixed(tensors: State) -> dict[str, Tensor]:
    return {name.removeprefix(SQUARES): value for name, value in tensors.items() if name.startswith(SQUARES)}


def _on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.cpu() for name, tensor in tensors.items()}
