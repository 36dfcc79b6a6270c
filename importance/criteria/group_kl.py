"""Score channels by Group KL.

It estimates how far a classifier's predictions move when a coupled channel is removed, from its logits' gradients.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hfp.importance.bases.gated import Quantities
from hfp.importance.bases.linearised import LinearisedImportance
from hfp.importance.capture.batches import Pass
from hfp.importance.capture.logits import logits_of


class GroupKLImportance(LinearisedImportance):
    r"""Score channel `c` by \(E_n\, KL(\mathrm{softmax}(z_n - J_{n,c}) \,\|\, \mathrm{softmax}(z_n))\), in nats per
    sample.

    \(J_{n,k,c}\) is the derivative of logit `k` of sample `n` in the gate of channel `c`, summed over all readers of
    the channel. To first order, removing the channel takes the logits from `z` to `z - J`. The divergence is then
    computed exactly. `GroupFisherImportance` takes it to second order only: its Gauss-Newton term is the limit of this
    score for small `J`. The difference matters for a confident prediction, which has no curvature but which a removal
    is large enough to change. Targets are not used. `E` is the mean over samples.

    Cost: one forward, and per class one backward to the activations.

    Args:
        classes: how many logits are differentiated, the largest of each sample (default 3); None takes all.
        joint: as for `GatedImportance`.
        repaired: as for `GatedImportance`.

    Raises:
        CriterionError: there are fewer than two classes.

    Source: this project; the quadratic limit is in Martens, arXiv 1412.1193, section 6.

    >>> import torch
    >>> from hfp.importance import GroupKLImportance
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3))
    >>> batches = [(torch.randn(8, 4), torch.randint(3, (8,)))]
    >>> criterion = GroupKLImportance()
    >>> criterion.accumulate(model, batches, torch.nn.functional.cross_entropy)
    >>> criterion.samples
    8
    """

    def __init__(self, classes: int | None = 3, joint: bool = False, repaired: bool = False) -> None:
        super().__init__(classes, joint, repaired)

    def _quantities(self, output: Any, target: Any, size: int, run: Pass) -> Quantities:
        logits = logits_of(output, size)
        scalars, chosen_logits, _ = self._chosen(logits, logits.detach())
        return Quantities(scalars, {"logits": chosen_logits})

    def _cost(self, change: Tensor) -> Tensor:
        before, after = self._moved(self.kept("logits"), change)
        return torch.where(after.isinf(), 0, after.exp() * (after - before)).sum(1).mean(0)
