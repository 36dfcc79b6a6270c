"""FedRolex: HeteroFL with a window of channels that moves on in every round (arXiv 2212.01548)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from hfp.methods.blocks.selection import keep_window
from hfp.methods.heterofl import HeteroFL
from hfp.methods.interface.registry import register
from hfp.methods.interface.values import Client, MethodContext, ServerState
from hfp.reconstruct import Plan


@register
@dataclass(frozen=True)
class FedRolex(HeteroFL):
    """FedRolex trains ``ceil(r C)`` channels from ``t mod C`` on in round ``t``, wrapping around at the end.

    The rest is as in `HeteroFL`. All layers of a coupled group of ``C`` channels move together, so that every channel
    is trained within ``C`` rounds.
    """

    name: ClassVar[str] = "fedrolex"
    source: ClassVar[str] = "Alam et al., NeurIPS 2022, arXiv 2212.01548"
    summary: ClassVar[str] = "HeteroFL whose window of channels rolls on by one every round"

    def plan(self, context: MethodContext, state: ServerState, client: Client) -> Plan:
        """Plan the window of the coming round."""
        return keep_window(context.groups, client.ratio, start=state.round)
