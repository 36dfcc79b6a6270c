"""Describe one way in which torch-pruning cuts one layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple


class Site(NamedTuple):
    """A node of torch-pruning's dependency graph and the function that cuts it."""

    node: Any
    handler: Callable[..., Any]

    @property
    def channels(self) -> int | None:
        """Count the channels of the layer in the direction that is cut; None for operations without a size."""
        pruner: Any = self.handler.__self__  # type: ignore[attr-defined]
        pruner.pruning_dim = self.node.pruning_dim
        direction = "out" if self.handler == pruner.prune_out_channels else "in"
        return getattr(pruner, f"get_{direction}_channels")(self.node.module)
