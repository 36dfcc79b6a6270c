"""The base of criteria that are given data.

It accumulates batches, and merges what other criteria have accumulated.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any, Generic, TypeVar

import torch
from torch import nn

from hfp.importance.capture.batches import Forward, Loss, Pass, unwrapped
from hfp.importance.capture.state import untouched
from hfp.importance.errors import CriterionError

Measured = TypeVar("Measured")


class FromData(ABC, Generic[Measured]):
    """A criterion that adds up what it measures on batches; `Measured` is what one accumulation finds."""

    @property
    @abstractmethod
    def samples(self) -> int:
        """Return the number of samples accumulated so far."""

    @property
    @abstractmethod
    def _measured(self) -> Measured:
        """Return all that has been accumulated. It is only asked for once there are samples."""

    @abstractmethod
    def _measure(self, model: nn.Module, batches: Iterable[Any], run: Pass) -> Measured:
        """Measure in one pass over the batches."""

    @abstractmethod
    def _add(self, measured: Measured) -> None:
        """Add to what has been accumulated. Refuse what is of another model, and change nothing then."""

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
        """Add the batches' samples; the model is run in evaluation mode and left as it was, and so is a loss's module.

        Args:
            model: the model that will be pruned.
            batches: (inputs, target) pairs. Inputs may be a tensor, a tuple of arguments or a dictionary of keywords.
            loss_fn: called as `loss_fn(output, target)`. It returns one value per sample, or one value for the batch.
            progress: whether to show a progress bar on standard error.
            reduction: what a loss that returns one value for the batch does over its samples, "mean" or "sum".
            forward: called as `forward(model, batch)`, it returns the output. It serves batches that are not (inputs,
                target) pairs; the loss then gets (output, batch).
            autocast: the type in which mixed precision computes (`torch.bfloat16` or `torch.float16`). None, the
                default, leaves the precision alone.

        Raises:
            CriterionError: the loader is empty, the loss or a gradient is not finite or does not exist, the model has
                other shapes than before or was made in inference mode, or an argument is of the wrong kind.
        """
        if not isinstance(model, nn.Module):
            raise CriterionError(f"model is the module that will be pruned, not {type(model).__name__}")
        if any(parameter.is_inference() for parameter in model.parameters()):
            raise CriterionError(
                "the model was made in inference_mode, so that nothing in it can be differentiated: give a copy that "
                "is made outside (copy.deepcopy(model))"
            )
        run = Pass(loss_fn, reduction, forward=forward, autocast=autocast, progress=progress)
        with ExitStack() as stack:
            if isinstance(loss_fn, nn.Module):
                stack.enter_context(untouched(loss_fn, parameters_require_grad=False, evaluates=False))
            self._add(self._measure(unwrapped(model), batches, run))

    def merge(self, other: FromData[Measured]) -> None:
        """Add what another criterion of the same model and options has accumulated on other samples.

        Raises:
            CriterionError: the other is another kind of criterion, is of a model with other shapes, or has no samples.
        """
        if type(other) is not type(self):
            raise CriterionError(f"can't merge a {type(other).__name__} into a {type(self).__name__}")
        if other.samples == 0:
            raise CriterionError("the other criterion has accumulated nothing")
        self._add(other._measured)
