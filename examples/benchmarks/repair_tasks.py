"""What the benchmark of repairs trains and prunes: image classifiers, a vision transformer, a language model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from hfp.data import Dataset, load_dataset
from hfp.models import create_model
from hfp.pruning.finetuning import accuracy, finetune, training_batches


class Task(ABC):
    """A network, how it is trained and tested, and the batches that it is scored and repaired with."""

    criterion = "kronecker"
    """A criterion that uses data."""

    @abstractmethod
    def network(self) -> nn.Module:
        """A new network, drawn from torch's random state."""

    @abstractmethod
    def train(self, model: nn.Module, seed: int) -> None:
        """Train a new network."""

    @abstractmethod
    def tune(self, model: nn.Module, seed: int) -> None:
        """Train a pruned network for one epoch."""

    @abstractmethod
    def test(self, model: nn.Module) -> dict[str, float]:
        """Figures on data that the network has not seen: "accuracy", and others."""

    @abstractmethod
    def batches(self) -> list[tuple[Any, Tensor]]:
        """Inputs and targets for scores and repairs."""

    def loss(self, output: Any, target: Tensor) -> Tensor:
        """The mean loss of a batch."""
        return cross_entropy(output, target)


@dataclass(frozen=True)
class Size:
    """How large a task is: training and test images, epochs, batches of 128 images for scores and repairs."""

    images: int = 3_000
    test: int = 1_000
    epochs: int = 6
    batches: int = 4
    width: float = 0.5


class Images(Task):
    """A classifier of the first images of a data set, in a fixed random order."""

    def __init__(self, data: Dataset, architecture: str, size: Size) -> None:
        draw = torch.Generator().manual_seed(0)
        train, test = (
            replace(split, images=split.images[chosen], labels=split.labels[chosen])
            for split, most in ((data.train, size.images), (data.test, size.test))
            for chosen in [torch.randperm(len(split), generator=draw)[:most]]
        )
        self.data, self._architecture, self._size = replace(data, train=train, test=test), architecture, size

    def network(self) -> nn.Module:
        """One of hfp's own networks."""
        return create_model(self._architecture, len(self.data.classes), self.data.shape[0], width=self._size.width)

    def train(self, model: nn.Module, seed: int) -> None:
        """Stochastic gradient descent."""
        finetune(model, self.data, self._size.epochs, learning_rate=0.05, seed=seed)

    def tune(self, model: nn.Module, seed: int) -> None:
        """The same with a smaller rate."""
        finetune(model, self.data, 1, seed=seed)

    def test(self, model: nn.Module) -> dict[str, float]:
        """The share of test images that are classified right."""
        return {"accuracy": accuracy(model, self.data)}

    def batches(self) -> list[tuple[Any, Tensor]]:
        """Training images."""
        return [*training_batches(self.data, 128, self._size.batches, torch.device("cpu"))]


class Transformer(Images):
    """A small vision transformer of timm."""

    def network(self) -> nn.Module:
        """Four blocks of 64 channels over patches of 4 x 4."""
        from timm.models import VisionTransformer

        channels, side = self.data.shape[0], self.data.shape[1]
        return VisionTransformer(
            img_size=side, patch_size=4, in_chans=channels, num_classes=len(self.data.classes), embed_dim=64, depth=4,
            num_heads=4, mlp_ratio=4,
        )  # fmt: skip

    def train(self, model: nn.Module, seed: int) -> None:
        """AdamW."""
        _adamw(model, self._shuffled(self._size.epochs, seed), self, 2e-3)

    def tune(self, model: nn.Module, seed: int) -> None:
        """The same with a smaller rate."""
        _adamw(model, self._shuffled(1, seed), self, 5e-4)

    def _shuffled(self, epochs: int, seed: int) -> list[tuple[Any, Tensor]]:
        draw = torch.Generator().manual_seed(seed)
        split = self.data.train
        return [
            (self.data.normalise(split.images[chosen]), split.labels[chosen])
            for _ in range(epochs)
            for chosen in torch.randperm(len(split), generator=draw).split(64)
        ]


class Text(Task):
    """A small Llama that predicts the next byte of Python's own reference, which comes with Python."""

    criterion = "group-fisher"
    length, epochs, size = 96, 2, 32

    def __init__(self) -> None:
        from pydoc_data.topics import topics

        data = torch.tensor(list("".join(topics[name] for name in sorted(topics)).encode()), dtype=torch.int64)
        rows = data[: len(data) // (self.length + 1) * (self.length + 1)].view(-1, self.length + 1)
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
        self._test, self._train = rows[order[:300]], rows[order[300:]]

    def network(self) -> nn.Module:
        """Three blocks of 64 channels."""
        from transformers import LlamaConfig, LlamaForCausalLM

        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=256, hidden_size=64, intermediate_size=192, num_hidden_layers=3, num_attention_heads=4,
                num_key_value_heads=4, max_position_embeddings=self.length, use_cache=False,
            )
        )  # fmt: skip

    def train(self, model: nn.Module, seed: int) -> None:
        """AdamW."""
        _adamw(model, self._shuffled(self.epochs, seed), self, 3e-3)

    def tune(self, model: nn.Module, seed: int) -> None:
        """The same with a smaller rate."""
        _adamw(model, self._shuffled(1, seed), self, 1e-3)

    def loss(self, output: Any, target: Tensor) -> Tensor:
        """The mean over all bytes."""
        return cross_entropy(output.logits.flatten(0, 1), target.flatten())

    def test(self, model: nn.Module) -> dict[str, float]:
        """The share of bytes that are predicted right, and perplexity per byte."""
        model.eval()
        with torch.no_grad():
            inputs, targets = self._pair(self._test)
            output = model(**inputs)
            right = (output.logits.argmax(-1) == targets).double().mean()
            return {"accuracy": float(right), "perplexity": float(self.loss(output, targets).exp())}

    def batches(self) -> list[tuple[Any, Tensor]]:
        """Rows of the training text."""
        return [self._pair(rows) for rows in self._train[:128].split(32)]

    def _shuffled(self, epochs: int, seed: int) -> Iterator[tuple[Any, Tensor]]:
        draw = torch.Generator().manual_seed(seed)
        for _ in range(epochs):
            for chosen in torch.randperm(len(self._train), generator=draw).split(self.size):
                yield self._pair(self._train[chosen])

    def _pair(self, rows: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        return {"input_ids": rows[:, :-1]}, rows[:, 1:]


def _adamw(model: nn.Module, batches: Any, task: Task, rate: float) -> None:
    batches = list(batches)
    optimizer = torch.optim.AdamW(model.parameters(), rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, len(batches), pct_start=0.1)
    model.train()
    for inputs, targets in batches:
        loss = task.loss(model(**inputs) if isinstance(inputs, dict) else model(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model.eval()


SIZES = {
    "fmnist/resnet8": Size(8_000, 2_000, 5, 8),
    "cifar10/resnet8": Size(8_000, 2_000, 5, 8),
    "digits/resnet20": Size(epochs=12),
    "digits/vgg-small": Size(epochs=12),
    "fmnist/resnet20": Size(2_500, epochs=5),
    "fmnist/vgg-small": Size(2_500, epochs=5),
    "digits/vit": Size(epochs=20),
    "fmnist/vit": Size(epochs=4),
}


def task(name: str, root: Path | str | None) -> Task:
    """A task by the names of its data and its architecture."""
    if name == "text/llama":
        return Text()
    data, architecture = name.split("/")
    kind = Transformer if architecture == "vit" else Images
    return kind(load_dataset(data, root), architecture, SIZES.get(name, Size()))
