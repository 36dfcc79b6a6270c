"""Leave one out: rank correlation of scores with the losses that removing each channel alone really gives."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from criteria_study.entries import ENTRIES, criterion_of
from criteria_study.log import Log
from criteria_study.networks import Trained
from criteria_study.pruned import Choice
from hfp.importance.groups.members import GroupLayer, members
from hfp.reconstruct.coupling.coupling import Coupling

Stage = tuple[str, Callable[[Tensor], Tensor]]


def run_alone(network: Trained, log: Log, choice: Choice) -> None:
    """For every criterion, the correlation over the whole network, and its mean over the coupled groups."""
    todo = [name for name in choice.criteria if log.wants(protocol="alone", criterion=name)]
    if not todo:
        return
    groups = groups_of(network)
    truth = loss_changes(network, groups)
    for name in todo:
        criterion = criterion_of(ENTRIES[name], network.model, network.score)
        scores = {group: criterion(groups[group]).detach().double() for group in groups}
        log.add(
            protocol="alone",
            criterion=name,
            network=spearman(torch.cat(list(scores.values())), torch.cat(list(truth.values()))),
            layers=statistics.mean(spearman(scores[group], truth[group]) for group in groups),
        )


def groups_of(network: Trained) -> dict[str, Any]:
    """The coupled groups of the network itself, without the classifier's."""
    coupling = Coupling.trace(network.model, torch.zeros(2, *network.shape), ["classifier"])
    group = coupling.groups_of(network.model)
    return {name: group(name) for name in coupling.names}


def stages(model: nn.Module) -> list[Stage]:
    """(prefix of the layers' names, function) whose composition is the network: what comes before a cut is run once."""
    if hasattr(model, "blocks"):
        blocks = [(f"blocks.{place}.", block) for place, block in enumerate(model.blocks)]
        head = lambda x: model.classifier(model.pool(x).flatten(1))  # noqa: E731
        return [("stem.", lambda x: functional.relu(model.stem(x))), *blocks, ("classifier", head)]
    layers = [(f"features.{place}.", layer) for place, layer in enumerate(model.features)]
    return [*layers, ("classifier", model.classifier)]


@torch.no_grad()
def loss_changes(network: Trained, groups: Mapping[str, Any]) -> dict[str, Tensor]:
    """What the test loss gains when each channel is removed alone, `[channels]` per group."""
    parts = stages(network.model)
    inputs = [[images for images, _ in network.alone]]
    for _, part in parts:
        inputs.append([part(x) for x in inputs[-1]])
    labels = torch.cat([labels for _, labels in network.alone])
    whole = functional.cross_entropy(torch.cat(inputs[-1]), labels)
    changes = {}
    for name, group in groups.items():
        readers = [member for member in members(group) if member.direction == "in"]
        start = min(next(i for i, (prefix, _) in enumerate(parts) if f"{m.name}.".startswith(prefix)) for m in readers)
        found = []
        for channel in range(len(group[0].idxs)):
            with removed(readers, channel):
                x = inputs[start]
                for _, part in parts[start:]:
                    x = [part(piece) for piece in x]
            found.append(functional.cross_entropy(torch.cat(x), labels) - whole)
        changes[name] = torch.stack(found)
    return changes


@contextmanager
def removed(readers: list[GroupLayer], channel: int) -> Iterator[None]:
    """While open, no reader sees the channel: its weights for it are 0."""
    cut = [(member.layer.weight, member.indices[member.positions == channel]) for member in readers]
    kept = [weight[:, indices].clone() for weight, indices in cut]
    for weight, indices in cut:
        weight[:, indices] = 0
    try:
        yield
    finally:
        for (weight, indices), values in zip(cut, kept, strict=True):
            weight[:, indices] = values


def spearman(a: Tensor, b: Tensor) -> float:
    """Spearman's rank correlation; 0 where one side is constant."""
    return float(torch.corrcoef(torch.stack([ranks(a), ranks(b)]))[0, 1].nan_to_num())


def ranks(values: Tensor) -> Tensor:
    """Ranks, ties sharing their mean."""
    _, inverse, counts = values.double().unique(return_inverse=True, return_counts=True)
    return (counts.cumsum(0) - (counts - 1) / 2)[inverse]
