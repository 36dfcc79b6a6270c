"""Your own data and model. Three functions; this example is scikit-learn's digits and a small network.

`client_data` runs on the nodes, each of which reads what is on its own disk; `test_data` on the server. Images are
float tensors [samples, channels, height, width] as the model takes them, labels int64 [samples].
"""

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

TEST = 297


def model() -> nn.Module:
    """The full model, of which clients train submodels. Its last linear layer gives the classes."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 10),
    )


def client_data(client: int, clients: int) -> tuple[Tensor, Tensor]:
    """The data of one client, 0 to clients - 1. A real node would read its own files here."""
    images, labels = _digits()
    return images[TEST + client :: clients], labels[TEST + client :: clients]


def test_data() -> tuple[Tensor, Tensor]:
    """What the global model is evaluated on."""
    images, labels = _digits()
    return images[:TEST], labels[:TEST]


def _digits() -> tuple[Tensor, Tensor]:
    found = load_digits()
    images = torch.tensor(found.images, dtype=torch.float32).unsqueeze(1)
    return (images - 4.9) / 6.0, torch.tensor(found.target, dtype=torch.int64)
