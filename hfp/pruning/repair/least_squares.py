r"""Least-squares reconstruction fits the weights that are left to what the full layer gave.

In the order of the forward pass, every layer that lost inputs gets the weights (and the constant, where it has a place)
that minimise \(E\|y^{full} - W x^{compact} - b\|^2 + \lambda\|W - W_0\|^2\), \(W_0\) being what pruning left and
\(\lambda\) a share, `ridge`, of the mean variance of the inputs. \(x^{compact}\) are the inputs that the layer gets in
the compact model whose earlier layers are already repaired, so that each layer also makes up for what those miss:

    W = W_0 + E[r x^T] (E[x x^T] + \lambda I)^{-1},  r = y^{full} - W_0 x - b_0

with all moments centred if there is a constant.

Moments are added up batch by batch; the weights are solved for anew at batches 1, 2, 4, 8, ... so that later layers
see repaired inputs in the same pass, and once more at the end.

Cost: a forward pass of both models, and per layer moments of at most `rows.choose` rows a batch. Source: He et al.,
Channel Pruning, ICCV 2017, section 3.1 (reconstruction); the ridge towards \(W_0\) is this project's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hfp.pruning.repair.constants import Constant
from hfp.pruning.repair.paired import over_both
from hfp.pruning.repair.readers import Reader
from hfp.pruning.repair.report import LayerRepair
from hfp.pruning.repair.rows import Chosen, as_rows, choose

RIDGE = 0.01


@dataclass
class RegressionMoments:
    """Sums over rows in float64, for each group of a convolution: counts, sums and products of inputs and outputs."""

    rows: int = 0
    x: Tensor | float = 0.0
    y: Tensor | float = 0.0
    xx: Tensor | float = 0.0
    yx: Tensor | float = 0.0
    yy: Tensor | float = 0.0

    def add(self, x: Tensor, y: Tensor) -> None:
        """Add rows: x `[groups, rows, in]`, y `[groups, rows, out]`.

        Products of half-precision rows are taken in float32: their own type keeps two or three digits of a sum.
        """
        x, y = _single(x), _single(y)
        self.rows += x.shape[1]
        self.x = self.x + x.sum(1, dtype=torch.float64)
        self.y = self.y + y.sum(1, dtype=torch.float64)
        self.xx = self.xx + (x.mT @ x).double()
        self.yx = self.yx + (y.mT @ x).double()
        self.yy = self.yy + y.double().square().sum(1)

    def means(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return the means per row, in the order `x, y, xx, yx, yy`."""
        return tuple(torch.as_tensor(part) / self.rows for part in (self.x, self.y, self.xx, self.yx, self.yy))  # type: ignore[return-value]


def _single(rows: Tensor) -> Tensor:
    return rows.float() if rows.dtype in (torch.float16, torch.bfloat16) else rows


@dataclass(frozen=True)
class Solution:
    """The best weights of a layer.

    Args:
        weight: `[groups, out, in]`.
        shift: a constant that is added to the outputs, `[groups, out]`.
        error: the share of the outputs' variance that is missed, before and after.
    """

    weight: Tensor
    shift: Tensor
    error: tuple[float, float]


def solve(
    moments: RegressionMoments,
    weight: Tensor,
    bias: Tensor,
    ridge: float,
    constant: bool,
    dtype: torch.dtype = torch.float64,
) -> Solution:
    """Find the minimiser above.

    Args:
        moments: of the layer's inputs and of the outputs that it should have.
        weight: what pruning left, `[groups, out, in]`.
        bias: the layer's own, `[groups, out]`.
        ridge: strength of the pull towards `weight`, as a share of the mean variance of the inputs.
        constant: whether the outputs may be shifted.
        dtype: the type that the weights are stored in; the shift and the errors are those of the rounded weights.
    """
    x, y, xx, yx, yy = moments.means()
    weight, y = weight.double(), y - bias.double()
    yx = yx - bias.double()[..., None] * x[..., None, :]
    variance = yy - (y + bias.double()).square()
    second = yy - 2 * bias.double() * (y + bias.double()) + bias.double().square()
    if constant:
        xx, yx = xx - x[..., :, None] * x[..., None, :], yx - y[..., :, None] * x[..., None, :]
        second = variance
    strength = ridge * xx.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None] + torch.finfo(xx.dtype).tiny
    damped = xx + strength * torch.eye(xx.shape[-1], dtype=xx.dtype, device=xx.device)
    solved = (weight + torch.linalg.solve(damped, (yx - weight @ xx).mT).mT).to(dtype).double()
    shift = y - (solved @ x[..., None])[..., 0] if constant else torch.zeros_like(y)
    scale = variance.sum().clamp_min(torch.finfo(xx.dtype).tiny)
    before, after = (
        float((second - 2 * (w * yx).sum(-1) + ((w @ xx) * w).sum(-1)).sum().clamp_min(0) / scale)
        for w in (weight, solved)
    )
    return Solution(solved, shift, (before, after))


def reconstruct(
    full: nn.Module,
    compact: nn.Module,
    layers: list[Reader],
    places: Mapping[str, Constant],
    batches: Iterable[Any],
    ridge: float = RIDGE,
) -> tuple[list[LayerRepair], int]:
    """Repair `layers` of the compact model in place.

    Returns:
        What was done, and the number of samples. A layer whose fitted weights are worse than before once they are
        rounded to their type keeps its weights, and is not among what was done.
    """
    fits = {layer.name: _Fit(layer, layer.name in places, ridge) for layer in layers}
    samples, number = 0, 0

    def keep(layer: Reader, target: Tensor) -> tuple[Chosen, Tensor]:
        chosen = choose(layer.compact, target, fits[layer.name].columns, number)
        return chosen, chosen.outputs(layer.compact, target)

    for expected, size, run_compact in over_both(full, compact, layers, batches, keep):
        number += 1
        with ExitStack() as hooks:
            for fit in fits.values():
                fit.expected, fit.due = expected, number & (number - 1) == 0
                hooks.callback(fit.layer.compact.register_forward_pre_hook(fit.before).remove)
                hooks.callback(fit.layer.compact.register_forward_hook(fit.after).remove)
            run_compact()
        samples += size
    found = [fit.finish(places.get(name)) for name, fit in fits.items()]
    return [each for each in found if each is not None], samples


class _Fit:
    """One layer's regression while batches run. Its hooks feed it and use what it has found so far."""

    def __init__(self, layer: Reader, constant: bool, ridge: float) -> None:
        self.layer, self._constant, self._ridge = layer, constant, ridge
        self.expected: Mapping[str, tuple[Chosen, Tensor]] = {}
        self.due = False
        module = layer.compact
        assert isinstance(module.weight, Tensor)
        self._weight = as_rows(module, module.weight.detach().clone())
        self.columns = self._weight.shape[-1]
        bias = module.bias if isinstance(module.bias, Tensor) else torch.zeros(1, device=module.weight.device)
        self._bias = bias.detach().clone().expand(len(module.weight)).unflatten(0, self._weight.shape[:2])
        self._moments = RegressionMoments()
        self._solution: Solution | None = None

    def before(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Add the rows of a batch; solve if that is due."""
        chosen, y = self.expected[self.layer.name]
        self._moments.add(chosen.inputs(module, args[0]), y)
        if self.due:
            self._solve()

    def after(self, _: nn.Module, __: Any, output: Tensor) -> Tensor:
        """Shift the outputs, as the constant will do in the end."""
        assert self._solution is not None
        return self.layer.shifted(output, self._solution.shift.flatten()) if self._constant else output

    def finish(self, place: Constant | None) -> LayerRepair | None:
        """Solve with all rows, and put the constant into its place; or give the weights back that were better."""
        solution = self._solve()
        if solution.error[1] > solution.error[0]:
            self._write(self._weight)
            return None
        if place is not None:
            place.add(solution.shift.flatten())
        where = "weight" if place is None else f"weight and {place.name}"
        return LayerRepair(self.layer.name, where, solution.error)

    def _solve(self) -> Solution:
        dtype = self._weight.dtype
        found = self._solution = solve(self._moments, self._weight, self._bias, self._ridge, self._constant, dtype)
        self._write(found.weight)
        return found

    def _write(self, weight: Tensor) -> None:
        parameter = self.layer.compact.weight
        assert isinstance(parameter, Tensor)
        with torch.no_grad():
            parameter.copy_(weight.flatten(0, 1).reshape(parameter.shape))
