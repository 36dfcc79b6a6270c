"""A model with its scaling and normalisation inside, so that an exported file can't be given the wrong scale."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hfp.data.dataset import normalised
from hfp.results.inputs import ModelInput


class Deployed(nn.Module):
    """A trained model that takes images as they are, uint8 0 to 255, and returns scores `[samples, classes]`.

    A model of data that was floats takes floats in the data set's own units. Nothing is resized.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, taken: ModelInput) -> None:
        """Put what `taken` says in front of `model`."""
        super().__init__()
        self.model = model
        self._scale = taken.scale
        self._pictures = taken.takes_pictures
        self._shape = taken.shape
        self.register_buffer("mean", torch.tensor(taken.mean))
        self.register_buffer("std", torch.tensor(taken.std))

    @property
    def takes(self) -> str:
        """What it takes, in words."""
        values = "uint8 0 to 255" if self._pictures else "values in the data set's own units"
        return f"{values} [samples, {', '.join(map(str, self._shape))}]"

    def forward(self, images: Tensor) -> Tensor:
        """Map samples `[samples, ...]` to scores `[samples, classes]`."""
        values = images.to(torch.float32)
        if self._pictures and self._scale != 1:
            values = values * self._scale
        return self.model(normalised(values, self.mean, self.std))


def example(taken: ModelInput) -> Tensor:
    """Make two samples of the kind that `Deployed` takes."""
    generator = torch.Generator().manual_seed(0)
    if taken.takes_pictures:
        return torch.randint(256, (2, *taken.shape), dtype=torch.uint8, generator=generator)
    samples = torch.randn(2, *taken.shape, generator=generator)
    return samples if taken.largest is None else (samples.abs() * taken.largest / 4).clamp(max=taken.largest).byte()
