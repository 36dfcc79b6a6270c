"""Cutting a network as `hfp.prune` does, for many criteria: it is traced once, and costs are counted by weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from criteria_study.networks import Batches, Trained
from hfp.costs.macs import macs_per_weight
from hfp.pruning.measuring import mean_loss, measured, measurements, samples_for
from hfp.pruning.meeting import meet
from hfp.pruning.repair import repair
from hfp.pruning.schedule import Bundle, Order, RankingRules
from hfp.pruning.scoring import structured
from hfp.reconstruct import IndexMap, compact_model
from hfp.reconstruct.coupling.coupling import Coupling

Kept = Mapping[str, Sequence[int]]


class Cutter:
    """Prunes one network by any scores. Its weights must take part in as many products each before and after.

    model: the network or what is left of it after some steps.
    """

    def __init__(self, model: nn.Module, network: Trained) -> None:
        self.model, self.data = model, network.score
        example = torch.zeros(1, *network.shape)
        self.coupling = Coupling.trace(model, example, ["classifier"])
        self.groups = self.coupling.groups_of(model)
        self.uses = macs_per_weight(model, example)
        self.macs = self.count(self.index_map({}))

    def index_map(self, kept: Kept) -> IndexMap:
        """Where the network that keeps these channels lies in the model."""
        return self.coupling.index_map(self.coupling.plan(kept))

    def count(self, index_map: IndexMap) -> int:
        """Multiply-accumulates for one image."""
        sizes = {name: tensor.numel() for name, tensor in self.model.state_dict().items()}
        sizes |= {name: torch.Size(cut.compact_shape).numel() for name, cut in index_map.tensors.items()}
        return sum(uses * sizes[name] for name, uses in self.uses.items())

    def order(self, score: Callable[[Any], Tensor], ranking: str) -> Order:
        """All removals, by the scores of a group and one of the rankings of `hfp.prune`."""
        rules = RankingRules(ranking)
        bundles = [Bundle({name: score(self.groups(name)).detach()}, {name: (1,)}) for name in self.coupling.names]
        if ranking == "isomorphic":
            bundles = structured(bundles, self.coupling, self.model)
        if ranking != "measured":
            return Order.of(bundles, rules)
        batches = samples_for(self.data, measurements(bundles, rules))
        return Order.of(measured(bundles, rules, partial(self.outcome, batches)), rules)

    def outcome(self, batches: Batches, kept: Kept) -> tuple[float, float]:
        """Multiply-accumulates, and loss on some batches, of the network that keeps these channels."""
        index_map = self.index_map(kept)
        return self.count(index_map), mean_loss(compact_model(self.model, index_map), batches, functional.cross_entropy)

    def cut(self, order: Order, share: float) -> IndexMap:
        """The place of the network that has this share of the multiply-accumulates, from below."""
        costs = lambda kept: {"macs": self.count(self.index_map(kept)) / self.macs}  # noqa: E731
        return self.index_map(meet(order, {"macs": share}, costs))

    def repaired(self, index_map: IndexMap, kinds: tuple[str, ...] = ()) -> nn.Module:
        """The compact network, after repairs."""
        compact = compact_model(self.model, index_map)
        repair(self.model, compact, index_map, self.data, kinds)
        return compact


@torch.no_grad()
def accuracy(model: nn.Module, test: Batches) -> float:
    """Share of test images classified right."""
    model.eval()
    right = sum(int((model(images).argmax(1) == labels).sum()) for images, labels in test)
    return right / sum(len(labels) for _, labels in test)


def finetuned(model: nn.Module, data: Batches) -> nn.Module:
    """A copy after one epoch, learning rate 0.02 falling to 0."""
    model = copy.deepcopy(model).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, len(data))
    for images, labels in data:
        optimizer.zero_grad()
        loss: Tensor = functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()
