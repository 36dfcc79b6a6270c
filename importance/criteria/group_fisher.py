"""Score channels by Group Fisher.

It estimates the change of the loss when a coupled channel's gate goes from 1 to 0, from gate gradients.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from hfp.importance.bases.gated import GatedImportance, Quantities
from hfp.importance.capture.batches import Pass
from hfp.importance.capture.logits import logits_of
from hfp.importance.errors import CriterionError
from hfp.importance.options import check_options


class GroupFisherImportance(GatedImportance):
    r"""Score channel `c` by \(\tfrac12 E_n v_{n,c}^2\), where `v` is the derivative of the channel's gate.

    `v` is summed over all layers that read the channel. The score is the second-order term of the loss in the gate,
    with a Fisher of the gate for its curvature. It includes all cross terms inside the channel, since readers are added
    up before squaring. `E` is the mean over samples.

    Cost: one forward, and per pass one backward to the activations. No weight gradients are computed.

    Args:
        fisher: the quantity that `v` differentiates. "empirical" (default) takes the loss at the true labels; it works
            for any loss, and takes one backward. "gauss-newton" takes \(\sum_k \epsilon_k \sqrt{p_k} (z_k - \sum_j p_j
            z_j)\), where `z` are the logits, `p` their softmax and \(\epsilon\) random signs. The mean square of its
            derivative is the exact Gauss-Newton (and Fisher) term of cross-entropy. It needs a classifier, takes one
            backward per draw, and does not use the targets. "off" leaves the term out.
        first_order: the first-order term that is added, at the true labels: "signed" \(-E v\) or "absolute" \(E|v|\).
            "off" (default) adds nothing.
        draws: how many times the signs are drawn per sample, 1 by default.
        seed: the seed of the signs. They do not depend on how the samples are batched.
        joint: as for `GatedImportance`.
        repaired: as for `GatedImportance`.

    Raises:
        CriterionError: an option is unknown, both terms are off, or there is less than one draw.

    Source: Liu et al., Group Fisher Pruning, ICML 2021, eq. 8; gates as in Molchanov et al., CVPR 2019.

    >>> import torch
    >>> from hfp.importance import GroupFisherImportance
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3))
    >>> batches = [(torch.randn(8, 4), torch.randint(3, (8,)))]
    >>> criterion = GroupFisherImportance()
    >>> criterion.accumulate(model, batches, torch.nn.functional.cross_entropy)
    >>> criterion.samples
    8
    """

    def __init__(
        self,
        fisher: str = "empirical",
        first_order: str = "off",
        draws: int = 1,
        seed: int = 0,
        joint: bool = False,
        repaired: bool = False,
    ) -> None:
        super().__init__(joint, repaired)
        check_options(fisher=fisher, first_order=first_order, draws=draws, seed=seed)
        if fisher == first_order == "off":
            raise CriterionError("with fisher and first_order off there is no score left")
        self.fisher = fisher
        self.first_order = first_order
        self.draws = draws
        self._signs = np.random.default_rng(seed)

    @property
    def _needs_loss(self) -> bool:
        return self.fisher == "empirical" or self.first_order != "off"

    def _quantities(self, output: Any, target: Any, size: int, run: Pass) -> Quantities:
        scalars = [run.loss_sum(output, target, size)] if self._needs_loss else []
        if self.fisher == "gauss-newton":
            logits = logits_of(output, size)
            signs = torch.from_numpy(self._signs.integers(0, 2, (size, self.draws, logits.shape[1]))) * 2.0 - 1.0
            scalars += [gauss_newton_root(logits, signs[:, draw].to(logits)) for draw in range(self.draws)]
        return Quantities(scalars)

    def _cost(self, change: Tensor) -> Tensor:
        cost = change.new_zeros(change.shape[2])
        if self.first_order == "absolute":
            cost += change[:, 0].abs().mean(0)
        elif self.first_order == "signed":
            cost -= change[:, 0].mean(0)
        if self.fisher != "off":
            cost += (
                change[:, 1 if self._needs_loss and self.fisher == "gauss-newton" else 0 :].square().mean((0, 1)) / 2
            )
        return cost


def gauss_newton_root(logits: Tensor, signs: Tensor) -> Tensor:
    r"""Compute \(\sum_{n,k} \epsilon_{n,k} \sqrt{p_{n,k}} (z_{n,k} - \sum_j p_{n,j} z_{n,j})\), with `p` constant.

    Let `u` be its gradient in the logits. Over the signs, \(E\, u u^T = \mathrm{diag}(p) - p p^T\), which is the
    Hessian of cross-entropy.

    Args:
        logits: `z`, `[samples, classes]`.
        signs: \(\epsilon\), `[samples, classes]`.
    """
    probabilities = logits.detach().softmax(1)
    centred = logits - (probabilities * logits).sum(1, keepdim=True)
    return (signs * probabilities.sqrt() * centred).sum()
