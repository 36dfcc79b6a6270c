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
    return Calibrated(local.data.labels, strength) if strength else Objective()


class Calibrated(Objective):
    """Cross-entropy of ``z_c + τ log π_c``: scores ``z``, `strength` ``τ`` in [0, 1], ``π`` the shares of `labels`.

    A model that minimises it has the score that it would need if all classes were alike often (logit adjustment, Menon
    et al. 2021, arXiv 2007.07314, eq. 10; at federated clients Zhang et al. 2022, arXiv 2209.00189). ``π_c`` is
    ``(n_c + 1) / (n + C)``, so that a class the client lacks has a share too. The label counts stay with the client.
    """

    def __init__(self, labels: Tensor, strength: float) -> None:
        self._labels, self._strength = labels, strength
        self._offset: Tensor | None = None

    def loss(self, model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        """The mean over a batch."""
        scores = model(inputs)
        if self._offset is None:
            counts = torch.bincount(self._labels, minlength=scores.shape[1]).double() + 1
            precise = torch.promote_types(scores.dtype, torch.float32)
            self._offset = (self._strength * torch.log(counts / counts.sum())).to(scores.device, precise)
        return functional.cross_entropy(scores + self._offset, labels)
