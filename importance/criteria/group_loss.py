"""Score channels by Group loss.

It estimates what the removal of channels adds to a classifier's cross-entropy, from its logits' gradients.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from hfp.importance.bases.gated import Quantities
from hfp.importance.bases.linearised import LinearisedImportance
from hfp.importance.capture.batches import Pass
from hfp.importance.capture.logits import logits_of
from hfp.importance.errors import CriterionError


class GroupLossImportance(LinearisedImportance):
    r"""Score channel `c` by \(E_n[\ell_n(z_n - J_{n,S} - J_{n,c}) - \ell_n(z_n - J_{n,S})]\), in nats per sample.

    \(\ell_n\) is the cross-entropy with the target, and `J` is as in `GroupKLImportance`. `S` are the channels of the
    group that score lower and so are removed before (`joint_scores`); with `joint=False` there are none. `E` is the
    mean over samples.

    Targets are class labels, or probabilities `[samples, classes]`, such as those of the model before it was pruned.
    With a `forward` they are the second item of a batch of two.
    The score is tied to the targets and not to the model's own predictions. It therefore does not drift when a model is
    pruned in steps and scored again before each.

    Cost: one forward, and per class one backward to the activations.

    Args:
        classes: how many logits of each sample are differentiated (default 3); None takes all. Those with the largest
            sum of predicted and target probability are taken, the label's first.
        joint: as for `GatedImportance`, but True by default.
        repaired: as for `GatedImportance`.

    Raises:
        CriterionError: there are fewer than two classes.

    Source: this project.

    >>> import torch
    >>> from hfp.importance import GroupLossImportance
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3))
    >>> batches = [(torch.randn(8, 4), torch.randint(3, (8,)))]
    >>> criterion = GroupLossImportance()
    >>> criterion.accumulate(model, batches, torch.nn.functional.cross_entropy)
    >>> criterion.samples
    8
    """

    def __init__(self, classes: int | None = 3, joint: bool = True, repaired: bool = False) -> None:
        super().__init__(classes, joint, repaired)

    def _quantities(self, output: Any, target: Any, size: int, run: Pass) -> Quantities:
        logits = logits_of(output, size)
        labels = target[1] if run.forward is not None and isinstance(target, tuple) and len(target) == 2 else target
        wanted = target_probabilities(labels, logits.detach())
        scalars, chosen_logits, chosen = self._chosen(logits, logits.detach().softmax(1) + wanted)
        mass = wanted.gather(1, chosen)
        wanted = torch.cat([mass, 1 - mass.sum(1, keepdim=True)], 1)
        return Quantities(scalars, {"logits": chosen_logits, "targets": wanted})

    def _cost(self, change: Tensor) -> Tensor:
        wanted = self.kept("targets")
        before, after = self._moved(self.kept("logits"), change)
        # where all logits are differentiated, the rest has none, and rounding may leave it a target above 0
        gap = torch.where((wanted[..., None] > 0) & after.isfinite(), before - after, 0)
        return (wanted[..., None] * gap).sum(1).mean(0)


def target_probabilities(target: Any, logits: Tensor) -> Tensor:
    """Return targets as probabilities `[samples, classes]`, from labels `[samples]` or as given.

    Raises:
        CriterionError: the targets are neither, labels are not classes of the logits, or probabilities don't add up.
    """
    if isinstance(target, Tensor) and target.is_floating_point() and target.shape == logits.shape:
        sums, lowest = target.float().sum(1), target.min().item()
        if not (lowest >= 0 and torch.allclose(sums, torch.ones_like(sums), atol=0.05)):  # also refuses NaN
            raise CriterionError(
                "group-loss needs labels, or probabilities that add up to 1 in each sample, as targets; those of the "
                f"first sample add up to {sums[0].item():.3g}, and the lowest is {lowest:.3g}: take "
                "softmax of logits, and group-fisher for other targets"
            )
        return target.to(logits)
    if not isinstance(target, Tensor) or target.shape != logits.shape[:1] or target.is_floating_point():
        found = f"{target.dtype} {list(target.shape)}" if isinstance(target, Tensor) else type(target).__name__
        raise CriterionError(
            f"group-loss needs class labels [{len(logits)}] or probabilities {list(logits.shape)} as targets, "
            f"not {found}"
        )
    if int(target.min()) < 0 or int(target.max()) >= logits.shape[1]:
        raise CriterionError(
            f"labels run from {int(target.min())} to {int(target.max())}, and there are {logits.shape[1]} logits"
        )
    return functional.one_hot(target.long(), logits.shape[1]).to(logits)
