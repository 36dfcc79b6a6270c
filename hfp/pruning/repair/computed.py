"""Store fitted weights in layers whose weight is computed from other parameters, such as weight norm."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from hfp.pruning.repair.weights import COMPUTED

_ITERATIONS = 50


class Stored:
    """Stores a weight in a parametrized layer, and can take it back.

    Args:
        module: the layer.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._before = {name: tensor.clone() for name, tensor in module.state_dict().items() if COMPUTED in name}

    def store(self, weight: Tensor) -> Tensor | None:
        """Store the weight as near as the parametrization can; return what it computes then.

        The result is None where it can't be told which parameters give a weight.
        """
        try:
            self._module.weight = weight
        except (NotImplementedError, RuntimeError, ValueError):
            self.undo()
            return None
        self._settle()
        found = self._module.weight
        assert isinstance(found, Tensor)
        return found.detach().clone()

    def _settle(self) -> None:
        """Let what a parametrization estimates while it trains, such as a spectral norm's vectors, fit the weight."""
        parts = cast(nn.ModuleDict, self._module.parametrizations)["weight"]
        if not any(True for _ in parts.buffers()):
            return
        mode = parts.training
        parts.train()
        for _ in range(_ITERATIONS):
            _ = self._module.weight
        parts.train(mode)

    def undo(self) -> None:
        """Put back what was there."""
        with torch.no_grad():
            state = self._module.state_dict()
            for name, tensor in self._before.items():
                state[name].copy_(tensor)
