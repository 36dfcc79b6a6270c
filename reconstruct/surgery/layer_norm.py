"""Cut layer norms in order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn
from torch_pruning.pruner.function import LayernormPruner


class OrderedLayerNormPruner(LayernormPruner):  # type: ignore[misc]
    """torch-pruning's cut of a layer norm, with the kept channels in ascending order.

    torch-pruning 1.6.1 takes the channels in the order of a Python set, because it sorts a tensor and drops the result.
    That order is wrong where few channels of many are kept, such as 300 of 768. Scales and shifts then meet other
    channels.
    """

    def prune_out_channels(self, layer: nn.LayerNorm, idxs: Sequence[int]) -> nn.LayerNorm:
        """Remove channels `idxs` of dimension `pruning_dim` from a layer norm, in place."""
        dim = self.pruning_dim
        if len(layer.normalized_shape) < -dim:
            return layer
        gone = set(idxs)
        kept = [index for index in range(layer.normalized_shape[dim]) if index not in gone]
        for name in ("weight", "bias"):
            parameter = getattr(layer, name)
            if parameter is not None:
                setattr(layer, name, self._prune_parameter_and_grad(parameter, kept, dim))
        shape = list(layer.normalized_shape)
        shape[dim] = len(kept)
        layer.normalized_shape = tuple(shape)
        return layer

    prune_in_channels = prune_out_channels


def in_order(handler: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function to use in place of a torch-pruning function.

    It is the function itself, unless that cuts layer norms out of order.
    """
    pruner: Any = getattr(handler, "__self__", None)
    if type(pruner) is not LayernormPruner:
        return handler
    return OrderedLayerNormPruner(pruning_dim=pruner.pruning_dim).prune_out_channels
