"""The trained networks of the study, and the images that each protocol is given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from hfp.data import Dataset, augment, load_dataset
from hfp.models import create_model

Batches = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Sizes:
    """How many images are used.

    epochs: of training, per data set; an epoch has `train` images. score: for criteria and repairs. test: for accuracy.
    alone: test images for the losses of leaving one channel out. tune: of fine-tuning.
    """

    epochs: Mapping[str, int]
    train: int
    score: int
    test: int
    alone: int
    tune: int


@dataclass(frozen=True)
class Trained:
    """A trained network with the images of the protocols, normalised: batches to score with, to test with, to tune."""

    model: nn.Module
    shape: tuple[int, int, int]
    score: Batches
    test: Batches
    alone: Batches
    tune: Batches


def trained(network: str, seed: int, sizes: Sizes, cache: Path, roots: Mapping[str, str]) -> Trained:
    """The network `dataset/model/width` of a seed, trained now or read from the cache."""
    name, architecture, width = network.split("/")
    data = load_dataset(name, roots.get(name))
    torch.manual_seed(seed)
    model = create_model(architecture, len(data.classes), data.shape[0], width=float(width))
    file = cache / f"{network.replace('/', '-')}-{sizes.train}x{sizes.epochs[name]}-{seed}.pt"
    if file.exists():
        model.load_state_dict(torch.load(file, weights_only=True))
    else:
        train(model, data, seed, sizes.train, sizes.epochs[name], f"{network} seed {seed}")
        cache.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(".part")
        torch.save(model.state_dict(), part)
        part.replace(file)
    draw = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(data.train), generator=draw)
    chosen = torch.randperm(len(data.test), generator=draw)
    images, labels = data.train.images, data.train.labels
    return Trained(
        model.eval(),
        data.shape,
        batches(data, images, labels, order[: sizes.score], 64),
        batches(data, data.test.images, data.test.labels, chosen[: sizes.test], 500),
        batches(data, data.test.images, data.test.labels, chosen[: sizes.alone], 500),
        batches(data, images, labels, order[sizes.score : sizes.score + sizes.tune], 64),
    )


def batches(data: Dataset, images: Tensor, labels: Tensor, chosen: Tensor, size: int) -> Batches:
    """The chosen images, normalised, with their labels."""
    return [(data.normalise(images[part]), labels[part]) for part in chosen.split(size)]


def train(model: nn.Module, data: Dataset, seed: int, images: int, epochs: int, what: str) -> None:
    """SGD with Nesterov momentum, one cycle of the learning rate, shifted and mirrored images; a line an epoch."""
    draw = torch.Generator().manual_seed(seed)
    subset = torch.randperm(len(data.train), generator=draw)[:images]
    steps = epochs * (len(subset) // 64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=steps)
    model.train()
    for epoch in range(epochs):
        total = torch.zeros(())
        for part in subset[torch.randperm(len(subset), generator=draw)].split(64)[: len(subset) // 64]:
            inputs = data.normalise(augment(data.train.images[part], draw, padding=2))
            optimizer.zero_grad()
            loss = functional.cross_entropy(model(inputs), data.train.labels[part])
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.detach()
        print(f"{what}: epoch {epoch + 1} of {epochs}, loss {total / (len(subset) // 64):.3f}", flush=True)
