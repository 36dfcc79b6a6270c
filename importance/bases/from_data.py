"""What criteria that are given data have in common: accumulating batches, and merging with what others accumulated."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, Generic, TypeVar

import torch
from torch import nn

from hfp.importance.capture.batches import Forward, Loss, Pass, unwrapped
from hfp.importance.errors import CriterionError

Measured = TypeVar("Measured")


class FromData(ABC, Generic[Measured]):
    """A criterion that adds up what it measures on batches; `Measured` is what one accumulation finds."""

    @property
    @abstractmethod
    def samples(self) -> int:
        """How many samples have been accumulated."""

    @property
    @abstractmethod
    def _measured(self) -> Measured:
        """All that has been accumulated; asked for only once there are samples."""

    @abstractmethod
    def _measure(self, model: nn.Module, batches: Iterable[Any], run: Pass) -> Measured:
        """One pass over the batches."""

    @abstractmethod
    def _add(self, measured: Measured) -> None:
        """Add to what has been accumulated, or refuse what is another model's and leave that as it is."""

    def accumulate(
        self,
        model: nn.Module,
        batches: Iterable[Any],
        loss_fn: Loss,
        progress: bool = False,
        *,
        reduction: str = "mean",
        forward: Forward | None = None,
        autocast: torch.dtype | None = None,
    ) -> None:
        """Add the batches' samples; the model is run in evaluation mode and left as it was.

        Args:
            model: the model that will be pruned.
            batches: (inputs, target) pairs; inputs may be a tensor, a tuple or a dictionary of keywords.
            loss_fn: `loss_fn(output, target)`; returns one value per sample, or one value for the batch.
            progress: show a progress bar on standard error.
            reduction: what a loss that is one value for the batch is over its samples, "mean" or "sum".
            forward: `forward(model, batch) -> output`, for batches that aren't (inputs, target); the loss gets
                (output, batch).
            autocast: compute type of mixed precision (`torch.bfloat16`, `torch.float16`); None leaves precision alone.

        Raises:
            CriterionError: an empty loader, a loss or gradient that isn't finite or doesn't exist, a model of other
                shapes than before.
        """
        run = Pass(loss_fn, reduction, forward=forward, autocast=autocast, progress=progress)
        self._add(self._measure(unwrapped(model), batches, run))

    def merge(self, other: FromData[Measured]) -> None:
        """Add what another criterion of the same model and options has accumulated on other samples.

        Raises:
            CriterionError: another kind of criterion, one of a model with other shapes, or one without samples.
        """
        if type(other) is not type(self):
            raise CriterionError(f"can't merge a {type(other).__name__} into a {type(self).__name__}")
        if other.samples == 0:
            raise CriterionError("the other criterion has accumulated nothing")
        self._add(other._measured)
