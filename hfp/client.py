"""What a client does: train its compact submodel on its own data, and look at the global model through that data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from hfp.data import augment
from hfp.errors import InputError

Normalise = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class LocalTraining:
    """How a client trains: plain SGD over its shuffled data, images shifted and mirrored when `augment` is set."""

    epochs: int
    batch_size: int
    learning_rate: float
    momentum: float
    weight_decay: float
    augment: bool = False

    @property
    def step_size(self) -> float:
        """The length of a step once momentum has built up."""
        return self.learning_rate / (1 - self.momentum)


@dataclass(frozen=True)
class LocalResult:
    """What training took and reached: `loss` is the mean over the samples seen."""

    steps: int
    samples: int
    loss: float


def train(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    normalise: Normalise,
    training: LocalTraining,
    generator: torch.Generator,
) -> LocalResult:
    """Train `model` in place on `images` [samples, channels, height, width] and `labels` [samples].

    A last batch of one image is left out: batch-norm has no statistics of a single value.

    Raises:
        InputError: the loss became NaN or infinite.
    """
    device = next(model.parameters()).device
    optimizer = torch.optim.SGD(
        model.parameters(), training.learning_rate, momentum=training.momentum, weight_decay=training.weight_decay
    )
    model.train()
    steps, seen, total = 0, 0, torch.zeros((), device=device)
    for _ in range(training.epochs):
        for chosen in batches(len(labels), training.batch_size, generator):
            inputs = augment(images[chosen], generator) if training.augment else images[chosen]
            scores = model(normalise(inputs.to(device)))
            loss = functional.cross_entropy(scores, labels[chosen].to(device))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            steps, seen = steps + 1, seen + len(chosen)
            total += loss.detach() * len(chosen)
    mean = float(total) / max(seen, 1)
    if mean != mean or mean in (float("inf"), float("-inf")):
        raise InputError(
            f"training diverged (loss {mean}) at learning rate {training.learning_rate:g}; use a smaller one"
        )
    return LocalResult(steps=steps, samples=seen, loss=mean)


def batches(samples: int, batch_size: int, generator: torch.Generator | None = None) -> Iterator[Tensor]:
    """Index batches over all samples, shuffled when a generator is given; a last batch of one is dropped."""
    order = torch.arange(samples) if generator is None else torch.randperm(samples, generator=generator)
    for chosen in order.split(batch_size):
        if len(chosen) > 1:
            yield chosen


@torch.no_grad()
def evaluate(
    model: nn.Module, images: Tensor, labels: Tensor, normalise: Normalise, batch_size: int = 500
) -> tuple[float, float]:
    """Accuracy in percent and mean cross-entropy of `model`, in evaluation mode, over all the samples given."""
    device = next(model.parameters()).device
    model.eval()
    correct, loss = 0, 0.0
    for chosen in torch.arange(len(labels)).split(batch_size):
        scores = model(normalise(images[chosen].to(device)))
        target = labels[chosen].to(device)
        correct += int((scores.argmax(1) == target).sum())
        loss += float(functional.cross_entropy(scores, target, reduction="sum"))
    return 100 * correct / len(labels), loss / len(labels)
