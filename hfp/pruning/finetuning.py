"""Train a pruned classifier on, and measure its accuracy."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from hfp.data.augmentation import augment
from hfp.data.dataset import Dataset, Split
from hfp.layers.calling import modes_kept
from hfp.seeds import generator

Progress = Callable[[int, int, float], None]
"""Called after every step with (step, steps, loss)."""


def finetune(
    model: nn.Module,
    dataset: Dataset,
    epochs: int,
    *,
    learning_rate: float = 0.01,
    batch_size: int = 64,
    augmented: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
) -> None:
    """Train a model in place on a data set.

    The recipe is the usual one of pruning papers: stochastic gradient descent with Nesterov momentum 0.9, weight decay
    5e-4, and a learning rate that falls to zero along a cosine. The model is left in the mode it had.

    Args:
        model: a classifier of the data's images, on any device.
        dataset: the images and labels.
        epochs: how often to go through the training split.
        learning_rate: the learning rate of the first step.
        batch_size: images per step.
        augmented: whether to shift and mirror images at random. It harms where position or direction means something,
            as in digits and text.
        seed: draws the order of the images, and the shifts.
        progress: is called after every step.
    """
    steps = epochs * len(_sizes(len(dataset.train), batch_size))
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(parameters, learning_rate, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))
    device = next(model.parameters()).device
    draw = generator(seed, "finetune")
    batches = (batch for _ in range(epochs) for batch in _shuffled(dataset.train, batch_size, draw))
    with modes_kept(model):
        model.train()
        for step, (images, labels) in enumerate(batches, 1):
            inputs = dataset.normalise(augment(images, draw) if augmented else images).to(device)
            loss = cross_entropy(model(inputs), labels.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            if progress is not None:
                progress(step, steps, loss.item())
    for parameter in parameters:
        parameter.grad = None


def accuracy(model: nn.Module, dataset: Dataset, batch_size: int = 256) -> float:
    """Measure the share of test images that the model gets right in evaluation mode. The model is left as it was."""
    device = next(model.parameters()).device
    right = 0
    with modes_kept(model), torch.no_grad():
        model.eval()
        for images, labels in _batches(dataset.test, batch_size):
            right += int((model(dataset.normalise(images).to(device)).argmax(1).cpu() == labels).sum())
    return right / len(dataset.test)


def training_batches(dataset: Dataset, batch_size: int, most: int, device: torch.device) -> list[tuple[Tensor, Tensor]]:
    """Draw up to `most` normalised batches of the training split at random, to score channels with."""
    found: list[tuple[Tensor, Tensor]] = []
    for images, labels in _shuffled(dataset.train, batch_size, generator(0, "score")):
        if len(found) == most:
            break
        found.append((dataset.normalise(images).to(device), labels.to(device)))
    return found


def _shuffled(split: Split, batch_size: int, draw: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    order = torch.randperm(len(split), generator=draw)
    for chosen in order.split(_sizes(len(split), batch_size)):
        yield split.images[chosen], split.labels[chosen]


def _sizes(images: int, batch_size: int) -> list[int]:
    """Return how many images each batch has; one image beside full batches goes with the last of them."""
    full, rest = divmod(images, batch_size)
    if rest == 1 and full:  # batch norm can't train on one sample
        return [batch_size] * (full - 1) + [batch_size + 1]
    return [batch_size] * full + [rest] * (rest > 0)


def _batches(split: Split, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    yield from zip(split.images.split(batch_size), split.labels.split(batch_size), strict=True)
