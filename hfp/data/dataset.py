"""Images and labels held in memory, with the statistics that normalise them."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

_CHUNK = 4096
_NAMED = 10  # classes that a description lists


@dataclass(frozen=True, eq=False)
class Split:
    """Images `[samples, channels, height, width]` (uint8) and int64 labels `[samples]`."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class Dataset:
    """A training and a test split over the same classes.

    `shape` is `(channels, height, width)`. `mean` and `std` `[channels]` are those of the training images, in the
    images' own units. `notes` are sentences about what the loader assumed or left out.
    """

    name: str
    train: Split
    test: Split
    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    mean: Tensor
    std: Tensor
    notes: tuple[str, ...] = ()
    _constants: dict[torch.device, tuple[Tensor, Tensor]] = field(default_factory=dict, init=False, repr=False)

    @property
    def description(self) -> str:
        """One line that says what was found: images of both splits, their shape, the classes and the notes."""
        kind = "images" if len(self.shape) == 3 else "samples"
        shown = [*self.classes[:_NAMED], *(["..."] if len(self.classes) > _NAMED else [])]
        found = (
            f"{self.name}: {len(self.train):,} training and {len(self.test):,} test {kind} of "
            f"{'x'.join(map(str, self.shape))} in {len(self.classes)} classes ({', '.join(shown)})"
        )
        return "; ".join((found, *self.notes))

    def normalise(self, images: Tensor) -> Tensor:
        """Images `[samples, channels, height, width]` as float32 with mean 0 and deviation 1 in every channel.

        The result is on the images' device; the input is not changed.
        """
        if images.device not in self._constants:
            mean, std = (constant.to(images.device).view(-1, 1, 1) for constant in (self.mean, self.std))
            self._constants[images.device] = mean, std
        mean, std = self._constants[images.device]
        return (images.to(torch.float32) - mean) / std


def make_dataset(name: str, train: Split, test: Split, classes: tuple[str, ...]) -> Dataset:
    """Put two splits together and measure the training images."""
    mean, std = channel_statistics(train.images)
    channels, height, width = train.images.shape[1:]
    return Dataset(name, train, test, classes, (channels, height, width), mean, std)


def channel_statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation `[channels]` (float32) of images `[samples, channels, height, width]`.

    Summed in float64 a chunk at a time, so that no float copy of all images is made. A channel without any
    variation gets deviation 1, which leaves it at 0 after normalising.
    """
    total = torch.zeros(images.shape[1], dtype=torch.float64)
    squares = torch.zeros_like(total)
    for chunk in images.split(_CHUNK):
        values = chunk.to(torch.float64)
        total += values.sum(dim=(0, 2, 3))
        squares += values.square().sum(dim=(0, 2, 3))
    count = images.numel() // images.shape[1]
    mean = total / count
    std = (squares / count - mean.square()).clamp(min=0).sqrt()
    return mean.float(), torch.where(std > 0, std, 1.0).float()
