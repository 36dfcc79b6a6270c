"""Hold sums over samples of the gradient and the curvature of every parameter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from hfp.importance.errors import CriterionError

WAY_OUT = (
    "take group-fisher, or make the weight a parameter (torch.nn.utils.parametrize.remove_parametrizations, or "
    "remove_weight_norm, remove_spectral_norm, prune.remove)"
)
"""The advice of an error about a criterion that needs estimates of a weight that is computed from others."""


def wide(x: Tensor) -> Tensor:
    """Return a tensor in single precision, if it is in half.

    Half precision loses small squares, and the digits of long sums.
    """
    return x.float() if x.is_floating_point() and x.itemsize < 4 else x


def effect(x: Tensor, gradient: Tensor) -> Tensor:
    """Return what scaling each entry of a tensor does to the loss, to first order.

    This is the product with the gradient. PyTorch's gradient of a complex number holds those of its two parts.
    """
    return (x * gradient.conj()).real if x.is_complex() else x * gradient


@dataclass(frozen=True)
class GradientMoments:
    """The sums over `samples` of gradient and curvature, by the parameter's name, each in its full shape.

    Those of parameters in half precision are in single precision.
    """

    samples: int
    gradient: Mapping[str, Tensor]
    curvature: Mapping[str, Tensor]

    def plus(self, other: GradientMoments) -> GradientMoments:
        """Return the moments over both sets of samples.

        Raises:
            CriterionError: they are of models with other parameters or shapes.
        """
        for name in self.gradient.keys() | other.gradient.keys():
            mine, theirs = self.gradient.get(name), other.gradient.get(name)
            if mine is None or theirs is None or mine.shape != theirs.shape:
                shapes = [None if value is None else list(value.shape) for value in (mine, theirs)]
                raise CriterionError(
                    f"parameter {name!r} has shape {shapes[0]} in what is accumulated and {shapes[1]} in what is new; "
                    "call reset() after pruning a model"
                )
        return GradientMoments(
            self.samples + other.samples,
            {name: value + other.gradient[name].to(value) for name, value in self.gradient.items()},
            {name: value + other.curvature[name].to(value) for name, value in self.curvature.items()},
        )


def check_finite(named: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return the tensors after checking that none holds NaN or infinity.

    Raises:
        CriterionError: one does; the message names the first such parameter.
    """
    for name, value in named.items():
        if not torch.isfinite(value).all():
            raise CriterionError(f"the gradient of parameter {name!r} is not finite: check the data, loss and weights")
    return named


def check_real(name: str, weight: Tensor) -> None:
    """Refuse complex weights, of which criteria of single weights have no curvature.

    Raises:
        CriterionError: the weight is complex; the message names it.
    """
    if weight.is_complex():
        raise CriterionError(
            f"{name!r} is complex, and this criterion is of real weights: take group-fisher or l1, or put its group "
            "into ignored_layers"
        )
