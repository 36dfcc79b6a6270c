"""What scoring costs: processor time as a ratio of a plain forward and backward over the same batches."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch_pruning as tp
from torch import nn
from torch.nn import functional

from criteria_study.entries import ENTRIES, criterion_of
from criteria_study.log import Log
from criteria_study.networks import Batches, Trained
from criteria_study.pruned import Choice
from hfp.importance import describe

LOOP = "torch-pruning's Hessian loop"


def run_time(network: Trained, log: Log, choice: Choice) -> None:
    """Every criterion that needs data, and torch-pruning's own loop for its Hessian, over two batches of 64."""
    data = network.score[:2]
    work: dict[str, Callable[[], Any]] = {
        name: lambda entry=entry: criterion_of(entry, network.model, data)
        for name, entry in ENTRIES.items()
        if name in choice.criteria and describe(entry.criterion).needs == "data"
    }
    work[LOOP] = lambda: hessian_loop(network.model, data)
    for name, run in work.items():
        if log.wants(protocol="time", criterion=name):
            log.add(protocol="time", criterion=name, ratio=paired_ratio(run, lambda: plain(network.model, data)))


def paired_ratio(work: Callable[[], Any], reference: Callable[[], Any]) -> float:
    """Median of five ratios of processor time, each of two runs one after the other."""
    found = []
    for _ in range(6):
        times = [time.process_time()]
        for run in (reference, work):
            run()
            times.append(time.process_time())
        found.append((times[2] - times[1]) / (times[1] - times[0]))
    return statistics.median(found[1:])


def plain(model: nn.Module, data: Batches) -> None:
    """Forward and backward over the batches."""
    for images, labels in data:
        model.zero_grad()
        functional.cross_entropy(model(images), labels).backward()


def hessian_loop(model: nn.Module, data: Batches) -> None:
    """The accumulation that torch-pruning's documentation gives for its Hessian criterion."""
    criterion = tp.importance.GroupHessianImportance()
    criterion.zero_grad()
    for images, labels in data:
        for loss in functional.cross_entropy(model(images), labels, reduction="none"):
            model.zero_grad()
            loss.backward(retain_graph=True)
            criterion.accumulate_grad(model)
