"""Estimate gradient and curvature on a server, from how its clients' models moved in a round."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hfp.importance.bases.diagonal import DiagonalImportance
from hfp.importance.errors import CriterionError

ESTIMATORS = ("fisher", "centered", "secant")
Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Variation:
    r"""The server's running estimates, with one tensor of full shape per parameter; `update` returns the next value.

    Client `k` moved from \(w^{(0)}\) to \(w_k^{(E)}\). Its pseudo-gradient is \(g_k = -(w_k^{(E)} - w^{(0)}) / (\eta
    E)\). Per entry, sums run over the clients that hold it, with their shares \(p_k\) renormalised. The gradient is
    \(\hat g = \sum p_k g_k\), and the curvature is one of:

    - "fisher": \(\sum p_k g_k^2\), the empirical Fisher of the pseudo-gradients;
    - "centered": \(\sum p_k g_k^2 - \hat g^2\), their variance alone;
    - "secant": \(|\hat g_t - \hat g_s| / |w_t - w_s|\), the magnitude of finite differences along the server's path,
      where \(s\) is the last round before \(t\) in which the entry was trained.

    An entry that nobody trained in a round keeps its last estimate. An entry that nobody has trained yet has gradient 0
    and the mean curvature of its tensor's other entries, so that it is neither preferred nor penalised. No passes over
    data are needed. The value is frozen.

    Args:
        estimator: "fisher" (default), "centered" or "secant".
        smoothing: the share \(\beta\) of the old estimate that each update keeps, which makes a running average; 0 by
            default. An entry's first estimate is taken whole.
        gradient: the estimates so far, by parameter; set by `update`.
        curvature: the estimates so far, by parameter; set by `update`.
        seen: where there has been an estimate; set by `update`.
        weights: for the secant, what clients started from when they last trained an entry; set by `update`.

    Raises:
        CriterionError: the estimator is unknown, or the smoothing is outside [0, 1).

    Source: CA-HFP, arXiv 2603.12591, section on the score (the estimators are not spelt out there).

    >>> import torch
    >>> from hfp.importance import Variation
    >>> gradient, everyone = {"weight": torch.tensor([1.0, 2.0])}, {"weight": torch.ones(2)}
    >>> after = Variation().update(gradient, {"weight": torch.tensor([1.0, 4.0])}, everyone)
    >>> after.curvature["weight"]
    tensor([1., 4.])
    """

    estimator: str = "fisher"
    smoothing: float = 0.0
    gradient: Tensors | None = None
    curvature: Tensors | None = None
    seen: Tensors | None = None
    weights: Tensors | None = None

    def __post_init__(self) -> None:
        if self.estimator not in ESTIMATORS:
            raise CriterionError(f"estimator is one of {', '.join(ESTIMATORS)}, not {self.estimator!r}")
        if not 0 <= self.smoothing < 1:
            raise CriterionError(f"smoothing is a share in [0, 1), not {self.smoothing}")

    def update(
        self, gradient_sum: Tensors, square_sum: Tensors, coverage: Tensors, weights: Tensors | None = None
    ) -> Variation:
        r"""Return the estimates after one more round.

        Args:
            gradient_sum: \(\sum_k p_k g_k\) by parameter.
            square_sum: \(\sum_k p_k g_k^2\) by parameter.
            coverage: \(\sum_k p_k\) over the clients that hold an entry, which is 0 where nobody does.
            weights: what the clients started from. Only the secant needs it.

        Returns:
            The next value; this one is not changed.

        Raises:
            CriterionError: names or shapes differ between the arguments or from the rounds before, or values are not
                finite.
        """
        self._check(gradient_sum, square_sum, coverage, weights)
        gradients, curvatures, seens = {}, {}, {}
        for name, summed in gradient_sum.items():
            held = coverage[name] > 0
            share = torch.where(held, coverage[name], torch.ones_like(summed))
            mean, square = summed / share, square_sum[name] / share
            gradient, curvature, seen = self._of(name, summed)
            measured, estimate = self._curvature(name, mean, square, held, weights)
            gradients[name] = self._blend(gradient, mean, held, held & seen)
            seens[name] = seen | measured
            curvatures[name] = _fill(self._blend(curvature, estimate, measured, measured & seen), seens[name])
        starts = self._starts(coverage, weights) if self.estimator == "secant" and weights is not None else None
        return replace(self, gradient=gradients, curvature=curvatures, seen=seens, weights=starts)

    def _starts(self, coverage: Tensors, weights: Tensors) -> Tensors:
        """Return where each entry was when it was last trained, which its gradient belongs to."""
        before = weights if self.weights is None else self.weights
        return {name: torch.where(held > 0, weights[name], before[name]) for name, held in coverage.items()}

    def _of(self, name: str, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if self.gradient is None or self.curvature is None or self.seen is None:
            return torch.zeros_like(like), torch.zeros_like(like), torch.zeros_like(like, dtype=torch.bool)
        return self.gradient[name], self.curvature[name], self.seen[name]

    def _curvature(
        self, name: str, mean: Tensor, square: Tensor, held: Tensor, weights: Tensors | None
    ) -> tuple[Tensor, Tensor]:
        """Return where there is an estimate this round, and the estimate."""
        if self.estimator == "fisher":
            return held, square
        if self.estimator == "centered":
            return held, (square - mean.square()).clamp_min(0)
        if weights is None or self.weights is None or self.gradient is None:
            return torch.zeros_like(held), torch.zeros_like(mean)
        moved = weights[name] - self.weights[name]
        measured = held & (moved.abs() > torch.finfo(moved.dtype).eps * weights[name].abs())
        return measured, ((mean - self.gradient[name]) / torch.where(measured, moved, torch.ones_like(moved))).abs()

    def _blend(self, old: Tensor, estimate: Tensor, measured: Tensor, smooth: Tensor) -> Tensor:
        blended = torch.where(smooth, self.smoothing * old + (1 - self.smoothing) * estimate, estimate)
        return torch.where(measured, blended, old)

    def _check(self, gradient_sum: Tensors, square_sum: Tensors, coverage: Tensors, weights: Tensors | None) -> None:
        if self.estimator == "secant" and weights is None:
            raise CriterionError("the secant estimator needs the weights that the clients started from")
        expected = self.gradient if self.gradient is not None else gradient_sum
        given = {"gradient_sum": gradient_sum, "square_sum": square_sum, "coverage": coverage}
        for argument, tensors in {**given, **({} if weights is None else {"weights": weights})}.items():
            missing = expected.keys() - tensors.keys()
            if missing or (argument != "weights" and tensors.keys() - expected.keys()):
                names = sorted(missing or tensors.keys() - expected.keys())
                raise CriterionError(f"{argument} and the estimates differ in parameters: {', '.join(names[:5])}")
            for name, like in expected.items():
                if tensors[name].shape != like.shape:
                    raise CriterionError(
                        f"{argument}[{name!r}] has shape {list(tensors[name].shape)}, not {list(like.shape)}"
                    )
            bad = _not_finite({name: tensors[name] for name in expected})
            if bad:
                raise CriterionError(f"{argument}[{bad!r}] holds values that are not finite; did a client diverge?")


def _not_finite(tensors: Tensors) -> str:
    """Return the name of the first tensor with a value that is not finite, or an empty text; one device read."""
    names = [name for name, tensor in tensors.items() if tensor.numel()]
    if not names:
        return ""
    ends = torch.stack([end for name in names for end in tensors[name].aminmax()])
    finite = ends.isfinite().view(-1, 2).all(1).tolist()
    return next((name for name, whole in zip(names, finite, strict=True) if not whole), "")


def _fill(curvature: Tensor, seen: Tensor) -> Tensor:
    return (
        curvature
        if seen.all() or not seen.any()
        else torch.where(seen, curvature, curvature.masked_select(seen).mean())
    )


class VariationImportance(DiagonalImportance):
    """Score by CA-HFP's equation from a server's `Variation`; the weights are read from the group's layers.

    Args:
        variation: the estimates of gradient and curvature.
        form: as for `DiagonalImportance`.
        reduction: as for `DiagonalImportance`.

    Source: CA-HFP, arXiv 2603.12591, eq. 15.

    >>> from hfp.importance import Variation, VariationImportance
    >>> criterion = VariationImportance(Variation("secant"))
    """

    def __init__(self, variation: Variation, form: str = "curvature", reduction: str = "sum") -> None:
        super().__init__(form, reduction)
        self.variation = variation

    def statistics(self, name: str) -> tuple[Tensor, Tensor]:
        """Return the gradient and the curvature of one parameter."""
        gradient, curvature = self.variation.gradient, self.variation.curvature
        if gradient is None or curvature is None:
            raise CriterionError(
                "the variation holds no round yet: prune by another criterion, such as random, until it does"
            )
        if name not in gradient:
            raise CriterionError(f"the variation knows nothing of parameter {name!r}; is it of another model?")
        return gradient[name], curvature[name]
