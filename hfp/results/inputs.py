"""What a trained model takes: images of any kind reach it at the scale and size that it was trained on."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hfp.data import Dataset
from hfp.data.dataset import normalised
from hfp.data.pixels import Unreadable, images_bounded, picture_of, read_picture
from hfp.errors import InputError

UINT8, FLOAT = "uint8", "float32"
_DARK = 128  # a data set whose pixels are all below counts in units of its own, as scikit-learn's digits do
_SAMPLED = 4096

Images = Any
"""A path, a PIL image, a tensor or an array, or a sequence of these."""


TO_GREY, TO_COLOUR = "from colour to grey", "from grey to colour"


@dataclass(frozen=True, eq=False)
class Prepared:
    """What a model is called with.

    Args:
        samples: normalised, `[samples, ...]`.
        converted: for each of them, `TO_GREY` or `TO_COLOUR` where its channels were converted, else empty. A colour
            image whose channels are equal loses nothing, and counts as grey.
    """

    samples: Tensor
    converted: tuple[str, ...]


@dataclass(frozen=True)
class ModelInput:
    """What a trained model takes.

    Args:
        shape: of one sample: (channels, height, width) for images.
        dtype: of the data set's samples, `UINT8` or `FLOAT`.
        largest: the value of white in the data set's units; None where samples are floats.
        mean: of every channel, in the data set's units.
        std: of every channel, in the data set's units.
    """

    shape: tuple[int, ...]
    dtype: str
    largest: int | None
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, dataset: Dataset) -> ModelInput:
        """Describe what a model that was trained on `dataset` takes."""
        images = dataset.train.images if len(dataset.train) else dataset.test.images
        shape, mean, std = tuple(dataset.shape), tuple(dataset.mean.tolist()), tuple(dataset.std.tolist())
        if images.dtype != torch.uint8:
            return cls(shape, FLOAT, None, mean, std)
        brightest = int(images[:: max(1, len(images) // _SAMPLED)].max())
        return cls(shape, UINT8, brightest if 0 < brightest < _DARK else 255, mean, std)

    @property
    def scale(self) -> float:
        """What a picture's values of 0 to 255 are multiplied by to be in the data set's units."""
        return 1.0 if self.largest is None else self.largest / 255

    @property
    def takes_pictures(self) -> bool:
        """Whether image files make sense to the model: it was trained on uint8 images of one or three channels."""
        return self.dtype == UINT8 and len(self.shape) == 3 and self.shape[0] in (1, 3)

    def prepare(self, images: Images) -> Prepared:
        """Scale, resize and normalise samples `[samples, ...]` for the model, and give them its number of channels.

        Args:
            images: image files by path, PIL images, tensors or arrays, or a sequence of these. A file or PIL image may
                have any size and mode. Tensors are in the data set's own units and dtype: `[samples, channels, height,
                width]` or one sample without the first dimension; uint8 images may have any size.

        Raises:
            InputError: they are none of these, can't be decoded, or are tensors of another dtype, range or shape.
        """
        if isinstance(images, (Tensor, np.ndarray)):
            samples, converted = self._from_tensor(_as_tensor(images))
        elif isinstance(images, (str, os.PathLike, Image.Image)):
            sample, how = self._from_picture(images)
            samples, converted = sample[None], (how,)
        elif isinstance(images, Sequence) and images:
            parts = [self.prepare(image) for image in images]
            together = tuple(how for part in parts for how in part.converted)
            return Prepared(torch.cat([part.samples for part in parts]), together)
        else:
            raise InputError(
                f"expected image files, PIL images or tensors; found {type(images).__name__}"
                f"{' of none' if isinstance(images, Sequence) else ''}"
            )
        return Prepared(normalised(samples, torch.tensor(self.mean), torch.tensor(self.std)), converted)

    def _from_picture(self, source: str | os.PathLike[str] | Image.Image) -> tuple[Tensor, str]:
        """Read one image `[channels, height, width]` in the data set's units, and say how it was converted."""
        if not self.takes_pictures:
            raise InputError(f"the model takes {self._words}, no image files; give tensors as the data set has them")
        channels, height, width = self.shape
        where = "the PIL image" if isinstance(source, Image.Image) else f"image {os.fspath(source)}"
        try:
            with images_bounded():
                if isinstance(source, Image.Image):
                    picture = picture_of(source, (width, height))
                else:
                    picture = read_picture(os.fspath(source), (width, height))
        except (Unreadable, OSError, ValueError) as error:
            raise InputError(f"{where} can't be read: {error}") from error
        pixels = Image.fromarray(picture.pixels)
        array = np.asarray(pixels.convert("L"))[..., None] if channels == 1 else picture.pixels
        sample = torch.from_numpy(array.transpose(2, 0, 1).astype(np.float32)) * self.scale
        return sample, _conversion(picture.pixels, 1 if picture.grey else 3, channels)

    def _from_tensor(self, samples: Tensor) -> tuple[Tensor, tuple[str, ...]]:
        if samples.dim() == len(self.shape):
            samples = samples[None]
        self._check_values(samples)
        if tuple(samples.shape[1:]) == self.shape:
            return samples.cpu(), ("",) * len(samples)
        if not self.takes_pictures or samples.dim() != 4 or samples.shape[1] not in (1, 3) or not samples.numel():
            raise InputError(f"the model takes {self._words}; found a tensor {list(samples.shape)}")
        samples = samples.cpu()
        converted = (_conversion(one.permute(1, 2, 0).numpy(), len(one), self.shape[0]) for one in samples)
        return torch.stack([self._resized(sample) for sample in samples]), tuple(converted)

    def _check_values(self, samples: Tensor) -> None:
        fits = samples.dtype == torch.uint8 if self.dtype == UINT8 else samples.is_floating_point()
        if not fits:
            also = "; give PIL images or files, or uint8" if self.takes_pictures else ""
            raise InputError(f"the model takes {self._words}; found a tensor of {samples.dtype}{also}")
        if self.largest is not None and samples.numel() and int(samples.max()) > self.largest:
            raise InputError(
                f"the model takes {self._words}; found values up to {int(samples.max())}; "
                "images of 0 to 255 are scaled when they are given as files or PIL images"
            )

    def _resized(self, sample: Tensor) -> Tensor:
        channels, height, width = self.shape
        array = sample.permute(1, 2, 0).numpy()
        image = Image.fromarray(array[..., 0] if array.shape[2] == 1 else np.ascontiguousarray(array))
        pixels = Image.fromarray(picture_of(image, (width, height)).pixels)
        found = np.asarray(pixels.convert("L"))[..., None] if channels == 1 else np.asarray(pixels)
        return torch.from_numpy(found.transpose(2, 0, 1).copy())

    @property
    def _words(self) -> str:
        values = "floats" if self.largest is None else f"uint8 values 0 to {self.largest}"
        return f"{values} [samples, {', '.join(map(str, self.shape))}], in the data set's own units"


def _conversion(pixels: np.ndarray, before: int, after: int) -> str:
    """Say how an image `[height, width, channels]` was brought to another number of channels."""
    if before < after:
        return TO_COLOUR
    return TO_GREY if after < before and (pixels != pixels[..., :1]).any() else ""


def _as_tensor(values: Tensor | np.ndarray) -> Tensor:
    if isinstance(values, Tensor):
        return values.detach()
    try:
        return torch.from_numpy(values.copy())
    except TypeError as error:
        raise InputError(f"an array of {values.dtype} can't be used; give uint8 or floats") from error
