"""CA-HFP in its paper's form: nothing is added to the reconstruction or to the clients' loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from hfp.methods.ca_hfp import CAHFP
from hfp.methods.interface.registry import register


@register
@dataclass(frozen=True)
class CAHFPPaper(CAHFP):
    """CA-HFP that fills with the unchanged global values, after two rounds in which every client's mask is random.

    The score is ``h w²``, as in the paper's tables; the option `form` = ``paper`` is its eq. 15 as printed. All rounds
    of the paper have the same length, which is an experiment's `head_start` of 1.
    """

    name: ClassVar[str] = "ca-hfp-paper"
    summary: ClassVar[str] = "ca-hfp in the paper's own form: what a client did not hold stays as it is"

    warmup: int = 2
    nested: bool = False
    rule: str = "fill"
    shrink: float = 0.0
    shrink_decays: bool = False
    server_momentum: float = 0.0
    calibration: float = 0.0
