"""FedMP as its paper has it: a bandit draws every worker's ratio."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from hfp.methods.fedmp import FedMP
from hfp.methods.interface.registry import register


@register
@dataclass(frozen=True)
class FedMPBandit(FedMP):
    """`FedMP` with its E-UCB bandit. Clients' own ratios make no difference, so costs are not those of the others."""

    name: ClassVar[str] = "fedmp-bandit"
    summary: ClassVar[str] = "fedmp whose bandit draws the clients' ratios; their own make no difference"

    bandit: bool = True
