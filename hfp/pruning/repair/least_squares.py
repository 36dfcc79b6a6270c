r"""Least-squares reconstruction fits the weights that are left to what the full layer gave.

In the order of the forward pass, every layer that lost inputs gets the weights (and the constant, where it has a place)
that minimise \(E\|y^{full} - W x^{compact} - b\|^2 + \lambda\|W - W_0\|^2\), \(W_0\) being what pruning left and
\(\lambda\) a share, `ridge`, of the mean variance of the inputs. \(x^{compact}\) are the inputs that the layer gets in
the compact model whose earlier layers are already repaired, so that each layer also makes up for what those miss:

    W = W_0 + E[r x^T] (E[x x^T] + \lambda I)^{-1},  r = y^{full} - W_0 x - b_0

with all moments centred if there is a constant.

Moments are those of differences from the first batch's mean, so that large means don't swallow the digits of small
variances. They are added up batch by batch; the weights are solved for anew at batches 1, 2, 4, 8, ... so that later
layers see repaired inputs in the same pass, and once more at the end. Products are taken in float32 and sums in
float64, whatever the model's type is. Weights that are no better than before, once they are rounded to the model's
type, are given back.

Cost: a forward pass of both models, and per layer moments of at most `rows.choose` rows a batch. Memory: per layer, the
moments of its inputs, and the chosen rows of one batch. Source: He et al., Channel Pruning, ICCV 2017, section 3.1
(reconstruction); the ridge towards \(W_0\) is this project's.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from hfp.importance.capture.moments import wide
from hfp.pruning.repair.constants import Constant
from hfp.pruning.repair.following import Place, Run
from hfp.pruning.repair.paired import Pair
from hfp.pruning.repair.products import Product
from hfp.pruning.repair.reading import Reading
from hfp.pruning.repair.rows import Chosen, choose
from hfp.pruning.repair.weights import Cut, WeightPart

RIDGE = 0.01
_ROUNDING = 1e-12  # of the mean square of inputs; where they vary less than this, their variance is rounding


@dataclass
class RegressionMoments:
    """Sums over rows in float64, for each group of a convolution: counts, sums and products of inputs and outputs.

    Inputs and outputs are counted from the means of the first rows that were added, `origin`.
    """

    rows: int = 0
    origin: tuple[Tensor, Tensor] | None = None
    x: Tensor | float = 0.0
    y: Tensor | float = 0.0
    xx: Tensor | float = 0.0
    yx: Tensor | float = 0.0
    yy: Tensor | float = 0.0

    def add(self, x: Tensor, y: Tensor) -> None:
        """Add rows: x `[groups, rows, in]`, y `[groups, rows, out]`.

        Products of half-precision rows are taken in float32: their own type keeps two or three digits of a sum.
        """
        if x.shape[1] == 0:  # an expert that no token of the batch went to
            return
        x, y = wide(x), wide(y)
        if self.origin is None:  # not one row alone, which may be far from all others, as a text's first token is
            self.origin = x.mean(1, keepdim=True), y.mean(1, keepdim=True)
        x, y = x - self.origin[0], y - self.origin[1]
        self.rows += x.shape[1]
        self.x = self.x + x.sum(1, dtype=torch.float64)
        self.y = self.y + y.sum(1, dtype=torch.float64)
        self.xx = self.xx + (x.mT @ x).double()
        self.yx = self.yx + (y.mT @ x).double()
        self.yy = self.yy + y.double().square().sum(1)

    def central(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return the means of inputs and outputs, and the covariances `xx`, `yx` and variances `yy` around them."""
        assert self.origin is not None
        parts = (self.x, self.y, self.xx, self.yx, self.yy)
        x, y, xx, yx, yy = (torch.as_tensor(part) / self.rows for part in parts)
        xx, yx, yy = xx - x.unsqueeze(-1) * x.unsqueeze(-2), yx - y.unsqueeze(-1) * x.unsqueeze(-2), yy - y.square()
        return x + self.origin[0][:, 0], y + self.origin[1][:, 0], xx, yx, yy

    @property
    def variance(self) -> float:
        """The variance of the outputs, summed over channels."""
        return float(self.central()[4].sum().clamp_min(0))

    def missed(self, weight: Tensor, constant: Tensor) -> float:
        """Return the mean square of what `weight` and `constant` miss of the outputs, summed over channels."""
        x, y, xx, yx, yy = self.central()
        weight = weight.double()
        own, both = (weight @ xx * weight).sum(-1), (weight * yx).sum(-1)
        mean = y - constant.double() - (weight * x.unsqueeze(-2)).sum(-1)
        return float((yy - 2 * both + own + mean.square()).sum().clamp_min(0))


@dataclass(frozen=True)
class Solution:
    """The best weights of a layer.

    Args:
        weight: `[groups, out, in]`.
        shift: a constant that is added to the outputs, `[groups, out]`.
    """

    weight: Tensor
    shift: Tensor


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
        dtype: the type that the weights are stored in; the shift is that of the rounded weights.
    """
    x, y, xx, yx, _ = moments.central()
    weight, y = weight.double(), y - bias.double()
    squares = x.square() + xx.diagonal(dim1=-2, dim2=-1)
    if not constant:
        xx, yx = xx + x.unsqueeze(-1) * x.unsqueeze(-2), yx + y.unsqueeze(-1) * x.unsqueeze(-2)
    least = _ROUNDING * squares.mean(-1) + torch.finfo(xx.dtype).tiny
    strength = (ridge * xx.diagonal(dim1=-2, dim2=-1).mean(-1)).maximum(least)[..., None, None]
    damped = xx + strength * torch.eye(xx.shape[-1], dtype=xx.dtype, device=xx.device)
    solved = (weight + _divided((yx - weight @ xx).mT, damped).mT).to(dtype).double()
    return Solution(solved, best_shift(moments, solved, bias) if constant else torch.zeros_like(y))


def _divided(right: Tensor, matrix: Tensor) -> Tensor:
    """Solve for a symmetric matrix: by Cholesky's factors, or, where rounding made it indefinite, in general."""
    factor, failed = torch.linalg.cholesky_ex(matrix)
    return torch.linalg.solve(matrix, right) if bool(failed.any()) else torch.cholesky_solve(right, factor)


def best_shift(moments: RegressionMoments, weight: Tensor, bias: Tensor) -> Tensor:
    """Return the constant that leaves no error in the mean, `[groups, out]`."""
    x, y, *_ = moments.central()
    return y - bias.double() - (weight.double() @ x[..., None])[..., 0]


class Fit:
    """The regression of one weight, or of a part of one, while batches run.

    Args:
        name: the weight's name.
        product: a product with it.
        constant: what takes up a constant; None where nothing does.
        ridge: as for `solve`.
    """

    def __init__(self, name: str, product: Product, constant: Constant | None, ridge: float) -> None:
        self.name, self.constant, self._ridge = name, constant, ridge
        self.product = product.alone()
        self.start = product.rows_of(product.weight).clone()
        self.bias = self._bias_of(product).clone()
        self.moments = RegressionMoments()
        self.broken = False
        self._solved: tuple[int, Solution] | None = None

    def add(self, product: Product, arranged: Tensor, chosen: Chosen, target: Tensor) -> None:
        """Add rows of a product; where the full one has other rows, the fit is broken.

        Args:
            product: with what it reads.
            arranged: what it gives.
            chosen: the rows.
            target: what these should be, `[rows, channels]`.
        """
        channels = len(product.out_dims)
        same = tuple(arranged.shape[:-channels]) == chosen.dims
        self.broken |= not same or target.shape[1] != arranged.shape[-channels:].numel()
        if not self.broken:
            rows = product.grouped(target)
            if self.constant is None:  # then another place may have another bias
                rows = rows - (self._bias_of(product) - self.bias)[:, None]
            self.moments.add(product.inputs(chosen.places), rows)

    def _bias_of(self, product: Product) -> Tensor:
        groups, out, _ = self.start.shape
        zeros = self.start.new_zeros(groups, out)
        return zeros if product.bias is None else zeros + product.bias.view(groups, out)

    def solve(self) -> Solution:
        """Solve with the rows so far, and write the weights and the constant to the model."""
        rows, dtype, constant = self.moments.rows, self.start.dtype, self.constant is not None
        if self._solved is None or self._solved[0] < rows:
            self._solved = rows, solve(self.moments, self.start, self.bias, self._ridge, constant, dtype)
            self.put(self._solved[1])
        return self._solved[1]

    def put(self, solution: Solution) -> None:
        """Write weights and the constant to the model."""
        self.product.write(solution.weight)
        if self.constant is not None:
            self.constant.put(solution.shift.flatten())

    def taken(self) -> Solution:
        """Take the weights as they are in the model now; return them with the constant that is best for them."""
        weight = self.product.rows_of(self.product.weight).clone()
        shift = torch.zeros_like(self.bias, dtype=torch.float64)
        if self.constant is not None:
            shift = best_shift(self.moments, weight, self.bias)
            self.constant.put(shift.flatten())
        return Solution(weight, shift)

    def undo(self) -> None:
        """Put back what pruning left."""
        self.product.write(self.start)
        if self.constant is not None:
            self.constant.put(None)

    def errors(self, solution: Solution) -> tuple[float, float]:
        """Return what the outputs miss of the full ones, as a mean square, before and with a solution."""
        bias = self.bias.double()
        return self.moments.missed(self.start, bias), self.moments.missed(solution.weight, bias + solution.shift)


def fitted(pair: Pair, reading: Reading, batches: Iterable[object], ridge: float = RIDGE) -> tuple[list[Fit], int]:
    """Fit the wanted weights of the compact model in place.

    Returns:
        The fits, which hold all rows but whose last solution is not written yet, and the number of samples.
    """
    fits: dict[WeightPart, Fit] = {}
    samples = 0

    def keep(product: Product, cut: Cut, output: Tensor, number: int) -> tuple[Chosen, Tensor]:
        arranged, columns = product.arranged(output), product.rows_of(product.weight).shape[-1]
        left = cut.left(product.in_dim)
        if left is not None:
            columns = columns * len(left) // product.weight.shape[product.in_dim]
        chosen = choose(arranged.shape[: -len(product.out_dims)], columns, number, arranged.device)
        return chosen, product.target(arranged[chosen.places], cut).flatten(1)

    for number, (expected, size, run_compact) in enumerate(pair.over(batches, keep, reading.wanted), 1):
        due = number & (number - 1) == 0

        def meet(place: Place, product: Product, run: Run) -> Tensor:
            output = run()
            if place not in expected or not len(expected[place][1]):  # noqa: B023
                return output
            fit = _fit_of(fits, pair, reading, place, product, ridge)
            fit.add(product, product.arranged(output), *expected[place])  # noqa: B023
            if not due or fit.broken or place[1] < reading.calls[place[0]] - 1:  # noqa: B023
                return output
            fit.solve()
            return run()

        run_compact(meet)
        samples += size
    return list(fits.values()), samples


def _fit_of(
    fits: dict[WeightPart, Fit], pair: Pair, reading: Reading, place: Place, product: Product, ridge: float
) -> Fit:
    part = pair.weights.part(product.weight)
    if part not in fits:
        fits[part] = Fit(place[0], product, reading.constants.get(place), ridge)
    return fits[part]
