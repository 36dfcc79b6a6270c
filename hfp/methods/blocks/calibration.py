"""Cross-entropy for a client whose classes are unlike the others': the classes it lacks are not unlearnt."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from hfp.methods.interface.client_context import ClientContext
from hfp.settings import setting
from hfp.training.local_step import Objective


def calibration_setting(default: float) -> Any:
    """The option of a method whose clients train with the calibrated loss."""
    return setting(
        default,
        "Each local step adds this much to the strength of the calibrated loss, which is at most 1.",
        within="[0, inf)",
    )


def calibrated(local: ClientContext, calibration: float) -> Objective:
    """A client's loss in one round: `calibration` for each of its steps, at most 1, is the strength.

    The longer a client trains alone, the more it unlearns the classes that it lacks.
    """
    strength = min(1.0, calibration * local.training.steps(len(local.data.labels)))
    if not strength:
        return Objective()
    precise = torch.promote_types(next(local.model.parameters()).dtype, torch.float32)
    return Calibrated(label_offset(local.data.labels, local.classes, strength).to(local.device, precise))


def label_offset(labels: Tensor, classes: int, strength: float) -> Tensor:
    """``τ log π_c`` with ``π_c = (n_c + 1) / (n + C)`` over the `labels`; `strength` is ``τ``. Float64 `[classes]`."""
    counts = torch.bincount(labels.cpu(), minlength=classes).double() + 1
    return strength * torch.log(counts / counts.sum())


class Calibrated(Objective):
    """Cross-entropy of ``z_c + τ log π_c``: scores ``z``, and the `offset` `[classes]` of `label_offset`.

    A model that minimises it has the score that it would need if all classes were alike often (logit adjustment, Menon
    et al. 2021, arXiv 2007.07314, eq. 10; at federated clients Zhang et al. 2022, arXiv 2209.00189). A class that the
    client lacks has a share too. The label counts stay with the client.
    """

    def __init__(self, offset: Tensor) -> None:
        self.tensors = {"offset": offset}

    def constants(self) -> tuple[()]:
        """None beside the offset."""
        return ()

    def loss(self, model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        """The mean over a batch."""
        return functional.cross_entropy(model(inputs) + self.tensors["offset"], labels)
