"""Group KL: how far a classifier's predictions move when a coupled channel is removed, from the gradients of its
logits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hfp.importance.batches import Pass
from hfp.importance.errors import CriterionError
from hfp.importance.gated import GatedImportance
from hfp.importance.logits import logits_of


class GroupKLImportance(GatedImportance):
    r"""Score of channel `c`: \(E_n\, KL(\mathrm{softmax}(z_n - J_{n,c}) \,\|\, \mathrm{softmax}(z_n))\).

    \(J_{n,k,c}\) is the derivative of logit `k` of sample `n` in the gate of channel `c`, summed over all readers of
    the
    channel: removing it takes the logits, to first order, from `z` to `z - J`. The divergence is then taken exactly,
    not to second order as in `GroupFisherImportance`, whose Gauss-Newton term is its limit for small `J`: a confident
    prediction has no curvature, but a removal is large enough to turn it. Targets aren't used. `E` is the mean over
    samples. This project's own; the quadratic limit is in Martens, arXiv 1412.1193, section 6.

    classes: the logits differentiated are the largest so many of each sample, and the others are held fixed; None takes
        all. joint, repaired: `GatedImportance`. Cost: one forward, and one backward to activations only per class.
    """

    def __init__(self, classes: int | None = 3, joint: bool = False, repaired: bool = False) -> None:
        super().__init__(joint, repaired)
        if classes is not None and classes < 2:
            raise CriterionError(f"classes is 2 or more, or None for all, not {classes}")
        self.classes = classes

    def _passes(self, output: Any, target: Any, size: int, run: Pass) -> tuple[list[Tensor], Tensor]:
        logits = logits_of(output, size)
        count = logits.shape[1] if self.classes is None else min(self.classes, logits.shape[1])
        chosen = logits.detach().topk(count, dim=1).indices
        leading = logits.gather(1, chosen)
        wide = logits.detach().to(torch.promote_types(logits.dtype, torch.float32))
        rest = torch.ones_like(wide).scatter(1, chosen, 0).log().add(wide).logsumexp(1, keepdim=True)
        return list(leading.sum(0)), torch.cat([wide.gather(1, chosen), rest], 1)

    def _cost(self, change: Tensor) -> Tensor:
        logits = self.outputs()[..., None]
        before = logits.log_softmax(1)
        rest = logits[:, -1:].expand(-1, -1, change.shape[2])
        after = torch.cat([logits[:, :-1] - change, rest], 1).log_softmax(1)
        return torch.where(after.isinf(), 0, after.exp() * (after - before)).sum(1).mean(0)
