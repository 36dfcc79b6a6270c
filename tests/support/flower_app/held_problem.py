"""A small problem whose training waits while the test folder has a file ``hold-K``; ``held-K`` says that it does."""

import os
import time
from pathlib import Path

import torch
from torch import Tensor, nn

CLASSES = 3
here: dict[str, int] = {}


class TrainedPart(nn.Sequential):
    """A network that waits, in training, when it is told to."""

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training and here:
            wait(here["client"])
        return super().forward(inputs)


def wait(client: int) -> None:
    folder = Path(os.environ["HFP_TEST_FOLDER"])
    while (folder / f"hold-{client}").exists():
        (folder / f"held-{client}").touch()
        time.sleep(0.05)


def model() -> nn.Module:
    return TrainedPart(
        nn.Conv2d(1, 16, 3),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, CLASSES),
    )


def client_data(client: int, clients: int) -> tuple[Tensor, Tensor]:
    here["client"] = client
    return data(24 + 8 * client, client)


def test_data() -> tuple[Tensor, Tensor]:
    return data(60, 99)


def data(samples: int, seed: int) -> tuple[Tensor, Tensor]:
    labels = torch.arange(samples) % CLASSES
    noise = torch.randn(samples, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    return noise + labels.view(-1, 1, 1, 1), labels
