"""The base of criteria that move a classifier's logits by the gates' gradients.

It says which logits are differentiated, and which are not.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hfp.importance.bases.gated import GatedImportance
from hfp.importance.options import check_options


class LinearisedImportance(GatedImportance):
    r"""A criterion that moves a classifier's logits by the gates' gradients.

    To first order, removing channel `c` takes a sample's logits from `z` to \(z - J_c\), where `J` are their gate
    gradients. The logits of `classes` classes of each sample are differentiated, with one backward pass each. The
    others stay constant and are kept as one number, the logarithm of the sum of their exponentials. This is exact for
    any function of the probabilities of the chosen classes.

    Args:
        classes: how many logits are differentiated; None takes all.
        joint: as for `GatedImportance`.
        repaired: as for `GatedImportance`.

    Raises:
        CriterionError: there are fewer than two classes.
    """

    def __init__(self, classes: int | None, joint: bool, repaired: bool) -> None:
        super().__init__(joint, repaired)
        check_options(classes=classes)
        self.classes = classes

    def _chosen(self, logits: Tensor, rank: Tensor) -> tuple[list[Tensor], Tensor, Tensor]:
        """Choose the classes with the largest `rank` `[samples, classes]`.

        Returns:
            The scalars to differentiate, the logits of the chosen classes and of the rest `[samples, chosen + 1]`, and
                the chosen classes `[samples, chosen]`.
        """
        count = logits.shape[1] if self.classes is None else min(self.classes, logits.shape[1])
        wide = logits.detach().to(torch.promote_types(logits.dtype, torch.float32))
        chosen = rank.topk(count, dim=1).indices
        rest = wide.scatter(1, chosen, -torch.inf).logsumexp(1, keepdim=True)
        return list(logits.gather(1, chosen).sum(0)), torch.cat([wide.gather(1, chosen), rest], 1), chosen

    def _moved(self, logits: Tensor, change: Tensor) -> tuple[Tensor, Tensor]:
        """Return the log-probabilities before and after a change.

        Their shapes are `[samples, chosen + 1, 1]` and `[samples, chosen + 1, n]`.
        """
        rest = logits[:, -1:, None].expand(-1, -1, change.shape[2])
        after = torch.cat([logits[:, :-1, None] - change, rest], 1)
        return logits[..., None].log_softmax(1), after.log_softmax(1)
