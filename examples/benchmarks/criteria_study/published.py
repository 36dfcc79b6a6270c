"""torch-pruning's own recipes, by its own pruner, as its repository publishes them for ResNet-56 on CIFAR-10.

Each removes channels in 400 steps by the norms of coupled groups, compared between layers, until a share of the
multiply-accumulates is gone. The second first trains the network with a penalty that grows for weak channels, without
weight decay. Where they train for 100 epochs, here it is as many as everything else is trained on.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
import torch_pruning as tp
from torch import nn

from criteria_study.cutting import accuracy
from criteria_study.log import Log, Row
from criteria_study.networks import Trained
from criteria_study.pruned import Choice
from criteria_study.training import train
from hfp.pruning.repair.batch_norm import recalibrate

NORM, SPARSE = "torch-pruning's group-norm", "torch-pruning's group-sl"
RECIPES = (NORM, SPARSE)
STEPS, PENALTY = 400, 5e-4


def run_published(network: Trained, log: Log, choice: Choice) -> None:
    """Every recipe at every ratio: at once, with batch-norm statistics taken anew, and trained on."""
    for recipe in RECIPES:
        lines = [
            {"protocol": protocol, "criterion": recipe, "ranking": "global", "ratio": ratio, "repair": repair}
            for ratio in choice.ratios
            for protocol, repair in (("once", "none"), ("once", "batch-norm"), ("retrained", "none"))
        ]
        todo = [line for line in lines if log.wants(**line)]
        if todo:
            start = _start(network, recipe)
            pruned = {ratio: _pruned(network, recipe, start, 1 - ratio) for ratio in {each["ratio"] for each in todo}}
            for line in todo:
                log.add(**line, accuracy=_accuracy(network, pruned[line["ratio"]], line))


def _start(network: Trained, recipe: str) -> nn.Module:
    """The network that a recipe prunes: as it is, or after sparse learning."""
    model = copy.deepcopy(network.model)
    if recipe == SPARSE:
        pruner = _pruner(network, model, recipe)
        how = replace(network.retraining, decay=0)
        train(model, network.whole, network.seed, how, "sparse learning", None, lambda: pruner.regularize(model))
    return model.eval()


def _pruner(network: Trained, model: nn.Module, recipe: str) -> tp.pruner.GroupNormPruner:
    return tp.pruner.GroupNormPruner(
        model,
        torch.zeros(1, *network.shape),
        tp.importance.GroupMagnitudeImportance(p=2, normalizer="max" if recipe == SPARSE else "mean"),
        reg=PENALTY,
        global_pruning=True,
        pruning_ratio=1.0,
        iterative_steps=STEPS,
        ignored_layers=[model.get_classifier()],
    )


def _pruned(network: Trained, recipe: str, start: nn.Module, share: float) -> nn.Module:
    """What is left after the first step at which it has this share of the multiply-accumulates, or less."""
    model, example = copy.deepcopy(start), torch.zeros(1, *network.shape)
    pruner = _pruner(network, model, recipe)
    whole, _ = tp.utils.count_ops_and_params(start, example)
    for _ in range(STEPS):
        pruner.step()
        if tp.utils.count_ops_and_params(model, example)[0] <= share * whole:
            return model
    raise RuntimeError(f"{recipe} did not reach {share:.0%} of the multiply-accumulates in {STEPS} steps")


def _accuracy(network: Trained, pruned: nn.Module, line: Row) -> float:
    model = copy.deepcopy(pruned)
    if line["repair"] == "batch-norm":
        recalibrate(model, network.score)
    if line["protocol"] == "retrained":
        train(model, network.whole, network.seed, network.retraining, line["criterion"])
    return accuracy(model, network.test)
