"""Training of the study's networks, and of what is left of them after pruning."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from hfp.atomic import whole_file
from hfp.data import Dataset, augment

BATCH = 64


@dataclass(frozen=True)
class Training:
    """One cycle of the learning rate over shifted and mirrored images.

    images: how many of the training images are used, drawn by the seed. epochs: over them. rate: the highest learning
    rate. decay: of the weights.
    """

    images: int
    epochs: int
    rate: float = 0.1
    decay: float = 5e-4


def train(
    model: nn.Module,
    data: Dataset,
    seed: int,
    how: Training,
    what: str,
    checkpoint: Path | None = None,
    change_gradients: Callable[[], Any] = lambda: None,
) -> None:
    """SGD with Nesterov momentum; a line an epoch.

    what: is trained, for the line. checkpoint: is written after each epoch, and training goes on from it.
    change_gradients: is called before each step of the optimiser.
    """
    draw = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(data.train), generator=draw)[: how.images]
    steps = len(chosen) // BATCH
    optimizer = torch.optim.SGD(model.parameters(), how.rate, momentum=0.9, nesterov=True, weight_decay=how.decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, how.rate, total_steps=how.epochs * steps)
    parts = {"model": model, "optimizer": optimizer, "schedule": schedule}
    model.to(memory_format=torch.channels_last)
    for epoch in range(_restored(checkpoint, parts, draw), how.epochs):
        model.train()
        total = torch.zeros(())
        for part in chosen[torch.randperm(len(chosen), generator=draw)].split(BATCH)[:steps]:
            inputs = data.normalise(augment(data.train.images[part], draw, padding=2))
            optimizer.zero_grad()
            loss = functional.cross_entropy(model(inputs), data.train.labels[part])
            loss.backward()
            change_gradients()
            optimizer.step()
            schedule.step()
            total += loss.detach()
        print(f"{what}: epoch {epoch + 1} of {how.epochs}, loss {total / steps:.3f}", flush=True)
        _save(checkpoint, parts, draw, epoch + 1)
    model.to(memory_format=torch.contiguous_format)


def _restored(checkpoint: Path | None, parts: dict[str, Any], draw: torch.Generator) -> int:
    """How many epochs are done, with everything as it was after them."""
    if checkpoint is None or not checkpoint.exists():
        return 0
    saved = torch.load(checkpoint, weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(saved[name])
    draw.set_state(saved["draw"])
    return int(saved["epochs"])


def _save(checkpoint: Path | None, parts: dict[str, Any], draw: torch.Generator, epochs: int) -> None:
    if checkpoint is not None:
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(checkpoint) as file:
            states = {name: part.state_dict() for name, part in parts.items()}
            torch.save({**states, "draw": draw.get_state(), "epochs": epochs}, file)
