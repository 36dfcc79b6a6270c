"""A trained model with what goes in and comes out, so that it can be asked about images as they are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hfp.errors import InputError
from hfp.results.inputs import Images, ModelInput
from hfp.training.batch_norm import estimate, has_statistics


@dataclass(frozen=True)
class Prediction:
    """What a model says about one sample.

    Args:
        label: the likeliest class.
        index: its place among the classes.
        probability: its probability.
        probabilities: those of all classes.
        converted: how the sample's channels were made the model's (`hfp.results.inputs.Prepared`); empty where they
            were.
    """

    label: str
    index: int
    probability: float
    probabilities: tuple[float, ...]
    converted: str = ""


@dataclass(frozen=True, eq=False, repr=False)
class TrainedClassifier:
    """A trained model that is ready to predict.

    Args:
        model: in evaluation mode, on the CPU; it takes what `input.prepare` gives and returns scores
            `[samples, classes]`.
        classes: the name of every class.
        input: what goes in: shape, scale and normalisation.
    """

    model: nn.Module
    classes: tuple[str, ...]
    input: ModelInput

    def predict(self, images: Images, *, batch_size: int = 64) -> list[Prediction]:
        """Classify images; scaling, resizing, channels and normalisation are taken care of.

        Args:
            images: image files by path, PIL images, uint8 tensors, or a sequence of these; tensors `[samples, ...]` in
                the data set's own units, or one sample without the first dimension (`ModelInput.prepare`).
            batch_size: how many are looked at at once.

        Returns:
            A prediction for every image, in their order.

        Raises:
            InputError: an image can't be read, or a tensor is of another dtype, range or shape than the model takes.
        """
        found: list[Prediction] = []
        for batch in self._batches(images, batch_size):
            prepared = self.input.prepare(batch)
            with torch.no_grad():
                rows = self.model(prepared.samples).double().softmax(1)
            found.extend(self._prediction(row, how) for row, how in zip(rows, prepared.converted, strict=True))
        return found

    def reestimate(self, images: Images, *, batch_size: int = 64) -> None:
        """Take the model's batch-norm statistics anew from images of the kind that it is to be used on.

        A client's submodel as planned has the full model's statistics, which are not its own; a few hundred images
        mend that. A model without batch-norm is left as it is.

        Raises:
            InputError: as `predict`, or there are fewer than two images.
        """
        batches = [self.input.prepare(batch).samples for batch in self._batches(images, batch_size)]
        batches = [batch for batch in batches if len(batch) > 1]
        if not batches:
            raise InputError("batch-norm statistics need at least two images")
        if has_statistics(self.model):
            estimate(self.model, batches)

    def _batches(self, images: Images, size: int) -> Iterator[Any]:
        if size < 1:
            raise InputError(f"batch_size must be at least 1; found {size}")
        several = isinstance(images, (Tensor, np.ndarray)) and images.ndim > len(self.input.shape)
        if not several and not (isinstance(images, Sequence) and not isinstance(images, (str, bytes)) and len(images)):
            yield images
            return
        for start in range(0, len(images), size):
            yield images[start : start + size]

    def _prediction(self, probabilities: Tensor, converted: str) -> Prediction:
        values = tuple(probabilities.tolist())
        index = max(range(len(values)), key=values.__getitem__)
        label = self.classes[index] if index < len(self.classes) else str(index)  # a given model may have more outputs
        return Prediction(label, index, values[index], values, converted)
