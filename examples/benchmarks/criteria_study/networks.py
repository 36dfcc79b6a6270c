"""The trained networks of the study, and the images that each protocol is given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from criteria_study.training import Training, train
from hfp.atomic import whole_file
from hfp.data import Dataset, load_dataset
from hfp.models import create_model

Batches = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Sizes:
    """How many images are used.

    epochs: of training, per data set; an epoch has `train` images. score: for criteria and repairs. test: for accuracy.
    alone: test images for the losses of leaving one channel out. tune: of fine-tuning. retrain: epochs over the
    training images after pruning, and as many of sparse learning before it.
    """

    epochs: Mapping[str, int]
    train: int
    score: int
    test: int
    alone: int
    tune: int
    retrain: int


@dataclass(frozen=True)
class Trained:
    """A trained network with the images of the protocols, normalised: batches to score with, to test with, to tune.

    whole: the data set that they are of. retraining: how it is trained on.
    """

    model: nn.Module
    shape: tuple[int, int, int]
    score: Batches
    test: Batches
    alone: Batches
    tune: Batches
    whole: Dataset
    seed: int
    retraining: Training


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
        checkpoint = file.with_suffix(".checkpoint")
        train(model, data, seed, Training(sizes.train, sizes.epochs[name]), f"{network} seed {seed}", checkpoint)
        with whole_file(file) as part:
            torch.save(model.state_dict(), part)
        checkpoint.unlink()
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
        data,
        seed,
        Training(sizes.train, sizes.retrain, rate=0.02),
    )


def batches(data: Dataset, images: Tensor, labels: Tensor, chosen: Tensor, size: int) -> Batches:
    """The chosen images, normalised, with their labels."""
    return [(data.normalise(images[part]), labels[part]) for part in chosen.split(size)]
