"""HeteroFL: clients train the first channels of every layer (arXiv 2010.01264)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from hfp.errors import InputError
from hfp.layers.products import PRODUCTS, counts_of, reads_single_channels, weight_dims
from hfp.methods.blocks.selection import keep_window
from hfp.methods.interface.base import Method
from hfp.methods.interface.client_context import ClientContext
from hfp.methods.interface.registry import register
from hfp.methods.interface.values import Client, MethodContext, Reply, ServerState, Task, TrainedPart, Update
from hfp.reconstruct import Aggregator, Coupling, IndexMap, Plan, TensorMap
from hfp.settings import setting
from hfp.training.local_step import Objective

CLASSES = "classes/present"


@register
@dataclass(frozen=True)
class HeteroFL(Method):
    """HeteroFL trains the first ``ceil(r C)`` of a coupled group's ``C`` channels, with ``r = 1 - ratio``.

    Every entry becomes the plain mean over the clients that hold it. With `scale`, hidden layers' outputs are
    multiplied by ``1/r`` during training. With `mask_classes`, a client that lacks a class trains with that class's
    logit set to 0, and its row of the classifier does not count in the mean. Batch-norm uses each batch's own
    statistics in training; the paper's way to evaluate is the `reestimate` policy.
    """

    name: ClassVar[str] = "heterofl"
    source: ClassVar[str] = "Diao et al., ICLR 2021, arXiv 2010.01264"
    summary: ClassVar[str] = (
        "each client trains the first channels of every layer; mean over the clients that hold an entry"
    )

    extra_tensor_prefixes: ClassVar[tuple[str, ...]] = (CLASSES,)

    scale: bool = setting(True, "While training, hidden outputs are divided by the share of channels that is kept.")
    mask_classes: bool = setting(
        True, "A client does not train the logits of classes that it lacks, and has no say in their rows."
    )

    def plan(self, context: MethodContext, state: ServerState, client: Client) -> Plan:
        """Plan the first channels of every coupled group."""
        return self.sized(context.model, context.groups, client.ratio)

    def sized(self, model: nn.Module, groups: Coupling, ratio: float) -> Plan:
        """Keep the share ``1 - ratio``, rounded up."""
        return keep_window(groups, ratio)

    def objective(self, local: ClientContext, task: Task, model: nn.Module) -> Objective:
        """Minimise cross-entropy over the classes that the client has, on scaled outputs."""
        factor = 1 / (1 - local.client.ratio) if self.scale else 1.0
        if self.scale:
            scale_outputs(model, task.index_map, factor)
        absent = torch.ones(local.classes, dtype=torch.bool)
        absent[local.data.labels.unique().cpu()] = False
        return MaskedCrossEntropy(absent.to(local.device) if self.mask_classes else None, factor)

    def train(self, local: ClientContext, task: Task) -> Reply:
        """Train, and name the client's classes in the reply where only their rows are to count."""
        reply = super().train(local, task)
        if not self.mask_classes:
            return reply
        classes = local.data.labels.unique().to(torch.int32)
        return dataclasses.replace(reply, tensors={**reply.tensors, CLASSES: classes})

    def check_reply(self, context: MethodContext, state: ServerState, update: Update) -> None:
        """Also refuse classes that don't exist."""
        classes = update.reply.tensors.get(CLASSES)
        if classes is not None:
            _check_classes(classes, max((len(state.weights[name]) for name in context.classifier), default=0))
        super().check_reply(context, state, update)

    def trained_part(self, context: MethodContext, state: ServerState, update: Update) -> TrainedPart:
        """Return the task's entries, of which the classifier's rows for classes that the client lacks don't count."""
        part = super().trained_part(context, state, update)
        if CLASSES not in update.reply.tensors:
            return part
        active = {}
        for name in context.classifier:
            shape, device = part.index_map.tensors[name].compact_shape, part.after[name].device
            active[name] = torch.zeros(shape, dtype=torch.bool, device=device)
            active[name][update.reply.tensors[CLASSES].to(device).long()] = True
        return dataclasses.replace(part, active=active)

    def collect(self, context: MethodContext, state: ServerState) -> HolderCollector:
        """Average every entry over the clients that hold it."""
        return HolderCollector(context, state)


def _check_classes(classes: Tensor, count: int) -> None:
    ascending = classes.dim() == 1 and classes.dtype == torch.int32 and bool((classes[1:] > classes[:-1]).all())
    if not ascending or len(classes) == 0 or classes[0] < 0 or classes[-1] >= count:
        raise InputError(f"{CLASSES} must be ascending int32 numbers below {count}; found {classes.reshape(-1)[:8]}")


class HolderCollector:
    """Averages an entry over the clients that hold it, and the classifier's over those that have the entry's class."""

    def __init__(self, context: MethodContext, state: ServerState) -> None:
        self._context, self._state = context, state
        self._aggregator = Aggregator(state.weights, rule="holders")

    def add(self, update: Update) -> None:
        """Fold one client's update in."""
        reply, index_map = update.reply.tensors, update.task.index_map
        tensors = {name: reply[name] for name in index_map.tensors}
        if CLASSES in reply:
            classes = reply[CLASSES].long().cpu()
            index_map = only_rows(index_map, self._context.classifier, classes)
            there = classes.to(next(iter(tensors.values())).device)
            tensors.update({name: tensors[name].index_select(0, there) for name in self._context.classifier})
        self._aggregator.add(tensors, index_map, weight=1)

    def finish(self) -> ServerState:
        """Return the state that the next round starts from."""
        return ServerState(self._state.round + 1, self._aggregator.finish(), self._state.method_state)


class MaskedCrossEntropy(Objective):
    """Cross-entropy with the logits of absent classes set to 0, so that these take no gradient.

    Args:
        absent: which classes the client lacks, boolean `[classes]`; None masks nothing.
        factor: the factor that `scale_outputs` has given the model.
    """

    def __init__(self, absent: Tensor | None, factor: float = 1.0) -> None:
        self._factor = factor
        self.tensors = {} if absent is None else {"absent": absent}

    def constants(self) -> tuple[float]:
        """Return the factor. Which layers it scales follows from the shapes of the model."""
        return (self._factor,)

    def loss(self, model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        """Return the mean loss over a batch."""
        scores = model(inputs)
        if "absent" in self.tensors:
            scores = scores.masked_fill(self.tensors["absent"], 0)
        return functional.cross_entropy(scores, labels)


def scale_outputs(model: nn.Module, index_map: IndexMap, factor: float) -> None:
    """Multiply the outputs of every layer that lost output channels by `factor`, from now on.

    Depthwise convolutions are left alone: they sum over no channels, so nothing is missing from their outputs.
    """
    for name, module in model.named_modules():
        if (
            isinstance(module, PRODUCTS)
            and not reads_single_channels(module)
            and _lost_outputs(name, module, index_map)
        ):
            module.register_forward_hook(lambda _module, _inputs, output: output * factor)


def _lost_outputs(name: str, layer: nn.Module, index_map: IndexMap) -> bool:
    place = index_map.tensors.get(f"{name}.weight")
    if place is not None:
        return place.kept[weight_dims(layer)[0]] is not None
    counts = counts_of(layer)  # the weight is computed from other tensors
    return counts is not None and counts[1] in index_map.attributes.get(name, {})


def only_rows(index_map: IndexMap, names: Sequence[str], rows: Tensor) -> IndexMap:
    """Return `index_map` without the entries of the tensors `names` whose first index is not in `rows`."""
    cut = {
        name: TensorMap(tensor.shape, (rows, *tensor.kept[1:])) if name in names else tensor
        for name, tensor in index_map.tensors.items()
    }
    return IndexMap(cut, index_map.attributes, index_map.transient)
