"""Score channels by the Hessian's diagonal, which random probes estimate."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from hfp.importance.bases.accumulated import AccumulatedImportance
from hfp.importance.capture.batches import Pass
from hfp.importance.capture.moments import GradientMoments, check_finite, wide
from hfp.importance.capture.state import differentiable, untouched
from hfp.importance.errors import CriterionError
from hfp.importance.options import check_options


class HutchinsonImportance(AccumulatedImportance):
    r"""Diagonal criterion with \(h = E_z\, z \odot H z\), where `z` has entries ±1 and `H` is the Hessian of the mean
    loss.

    The estimate is unbiased for the true diagonal, which may be negative. Each batch draws its own `z`, and the mean
    over samples weighs every batch by its size. No Fisher is involved. `g` is the mean gradient.

    Cost: a forward and a backward pass, and per probe one more backward through both.

    Args:
        form: as for `DiagonalImportance`.
        reduction: as for `DiagonalImportance`.
        probes: how many times `z` is drawn per batch, 1 or more.
        seed: the seed of the draws, which come from a generator of the criterion's own.

    Raises:
        CriterionError: there is less than one probe.

    Source: Bekas et al., 2007; Yao et al., AdaHessian, arXiv 2006.00719.

    >>> import torch
    >>> from hfp.importance import HutchinsonImportance
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3))
    >>> batches = [(torch.randn(8, 4), torch.randint(3, (8,)))]
    >>> criterion = HutchinsonImportance(probes=2)
    >>> criterion.accumulate(model, batches, torch.nn.functional.cross_entropy)
    >>> criterion.samples
    8
    """

    def __init__(self, form: str = "curvature", reduction: str = "sum", probes: int = 1, seed: int = 0) -> None:
        super().__init__(form, reduction)
        check_options(probes=probes, seed=seed)
        self.probes = probes
        self._generator = torch.Generator().manual_seed(seed)

    def _measure(self, model: nn.Module, batches: Iterable[Any], run: Pass) -> GradientMoments:
        total: GradientMoments | None = None
        parameters = {name: each for name, each in model.named_parameters() if differentiable(each)}
        zeros = {name: torch.zeros_like(each) for name, each in model.named_parameters() if name not in parameters}
        with untouched(model, parameters_require_grad=True), sdpa_kernel(SDPBackend.MATH):
            for batch, size in run.batches(batches, model):
                output = run.output(model, batch)
                loss = run.loss_sum(output, run.target(output, batch, size), size)
                _check_differentiable_twice(loss)
                scale = run.scale_of(size)
                try:
                    found = self._probe(loss * scale, list(parameters.values()))
                except RuntimeError as error:
                    raise _without_second_derivative(error) from error
                scaled = ([value / scale for value in values] for values in found)
                first, second = (zeros | dict(zip(parameters, values, strict=True)) for values in scaled)
                moments = GradientMoments(size, check_finite(first), check_finite(second))
                total = moments if total is None else total.plus(moments)
        assert total is not None
        return total

    def _probe(self, loss: Tensor, parameters: list[nn.Parameter]) -> tuple[list[Tensor], list[Tensor]]:
        r"""Return the gradient of the summed loss, and the mean over probes of \(z \odot H z\)."""
        gradient = torch.autograd.grad(loss, parameters, create_graph=True, materialize_grads=True)
        curvature = [torch.zeros_like(wide(parameter)) for parameter in parameters]
        curved = [place for place, value in enumerate(gradient) if value.requires_grad]
        for _ in range(self.probes if curved else 0):
            probe = [self._signs(parameter) for parameter in parameters]
            products = torch.autograd.grad(
                [gradient[place] for place in curved],
                parameters,
                [probe[place] for place in curved],
                retain_graph=True,
                materialize_grads=True,
            )
            for summed, product, signs in zip(curvature, products, probe, strict=True):
                summed.add_(wide(product) * signs / self.probes)
        return [wide(value.detach()) for value in gradient], curvature

    def _signs(self, like: Tensor) -> Tensor:
        return torch.randint(0, 2, like.shape, generator=self._generator).to(like).mul_(2).sub_(1)


def _without_second_derivative(error: RuntimeError) -> Exception:
    """Return what to raise: of some operations, such as the hard sigmoid, PyTorch has no second derivative."""
    if "is not implemented" not in str(error):
        return error
    return CriterionError(f"the model can't be differentiated twice ({error}): take empirical-fisher or kronecker")


def _check_differentiable_twice(loss: Tensor) -> None:
    """Refuse a loss that was computed through reentrant checkpoints.

    They cut the graph off, so that what is behind them would count as zero in silence.

    Raises:
        CriterionError: the loss was computed through one.
    """
    left: list[Any] = [loss.grad_fn]
    seen: set[Any] = set()
    while left:
        node = left.pop()
        if node in seen or node is None:
            continue
        seen.add(node)
        if node.name() == "CheckpointFunctionBackward":
            raise CriterionError(
                "activations are recomputed with use_reentrant=True, which can't be differentiated twice: checkpoint "
                "with use_reentrant=False, or turn checkpointing off"
            )
        left.extend(behind for behind, _ in node.next_functions)
