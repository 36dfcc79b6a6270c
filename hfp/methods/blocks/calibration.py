"""A cross-entropy under which a client does not unlearn the classes that its data lacks."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from hfp.methods.interface.client_context import ClientContext
from hfp.training.local_step import Objective


def calibrated(local: ClientContext, calibration: float) -> Objective:
    """Make a client's loss for one round. Its strength is `calibration` times the number of local steps, at most 1.

    The strength grows with the steps because a client that trains longer alone unlearns more of what it lacks.
    """
    strength = min(1.0, calibration * local.training.steps(len(local.data.labels)))
    if not strength:
        return Objective()
    precise = torch.promote_types(next(local.model.parameters()).dtype, torch.float32)
    return Calibrated(label_offset(local.data.labels, local.classes, strength).to(local.device, precise))


def label_offset(labels: Tensor, classes: int, strength: float) -> Tensor:
    """Compute ``τ log π_c`` with ``π_c = (n_c + 1) / (n + C)``, for ``n_c`` samples of class ``c``.

    Args:
        labels: the client's labels, `[samples]`.
        classes: ``C``.
        strength: ``τ``.

    Returns:
        The offset of every class, float64 `[classes]`.
    """
    counts = torch.bincount(labels.cpu(), minlength=classes).double() + 1
    return strength * torch.log(counts / counts.sum())


class Calibrated(Objective):
    """Cross-entropy of ``z_c + τ log π_c``, where ``z`` are the logits and `label_offset` is added to them.

    A model that minimises it has the logits that it would need if all classes were equally frequent. A class that the
    client lacks counts as if it had one sample. The label counts stay with the client.

    Args:
        offset: what `label_offset` returns, `[classes]`.

    Source: logit adjustment, Menon et al. 2021, arXiv 2007.07314, eq. 10; at federated clients, Zhang et al. 2022,
    arXiv 2209.00189.
    """

    def __init__(self, offset: Tensor) -> None:
        self.tensors = {"offset": offset}

    def constants(self) -> tuple[()]:
        """Return that nothing but the offset decides the loss."""
        return ()

    def loss(self, model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        """Return the mean loss over a batch."""
        return functional.cross_entropy(model(inputs) + self.tensors["offset"], labels)
