"""FedRolex: HeteroFL with a window of channels that moves on in every round (arXiv 2212.01548)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

from hfp.methods.blocks.selection import keep_window
from hfp.methods.heterofl import HeteroFL
from hfp.methods.interface.registry import register
from hfp.methods.interface.values import Client, MethodContext, ServerState
from hfp.reconstruct import Plan
from hfp.settings import setting

ROLLS: Mapping[str, str] = MappingProxyType(
    {
        "channel": "by one channel per round, as its authors do in runs of thousands of rounds",
        "run": "by equal shares of every layer's channels, once around within the run's rounds",
    }
)


@register
@dataclass(frozen=True)
class FedRolex(HeteroFL):
    """FedRolex trains ``ceil(r C)`` channels from ``t mod C`` on in round ``t``, wrapping around at the end.

    The rest is as in `HeteroFL`. All layers of a coupled group of ``C`` channels move together, so that every channel
    is trained within ``C`` rounds. A shorter run leaves some untrained where all clients are weak; with `roll` ``run``
    the window of round ``t`` of ``T`` begins at channel ``floor(t C / T)``.
    """

    name: ClassVar[str] = "fedrolex"
    source: ClassVar[str] = "Alam et al., NeurIPS 2022, arXiv 2212.01548"
    summary: ClassVar[str] = "HeteroFL whose window of channels rolls on by one every round"

    roll: str = setting("channel", "The window of channels moves on in this way.", choices=ROLLS)

    def plan(self, context: MethodContext, state: ServerState, client: Client) -> Plan:
        """Plan the window of the coming round."""
        if self.roll == "channel":
            return keep_window(context.groups, client.ratio, start=state.round)
        return keep_window(context.groups, client.ratio, turn=state.round / context.rounds)
