"""Counts what training a model keeps in memory at its peak, from the tensors that autograd saves."""

from __future__ import annotations

from collections.abc import Hashable

import torch
from torch import Tensor, nn

from hfp.costs.macs import decides_costs
from hfp.layers.calling import random_state_kept
from hfp.reconstruct.models.copying import copied
from hfp.reconstruct.models.twin import computed


class PeakBytesCounter:
    """Counts the bytes that a training step keeps, once for every set of parameter shapes.

    These are the parameters, their gradients and their momentum, the buffers, and what the forward pass saves for the
    backward pass, inputs included. Memory that kernels use for themselves isn't counted.

    Args:
        example: one input, `[1, ...]`.
    """

    def __init__(self, example: Tensor) -> None:
        self._example = example
        self._counted: dict[Hashable, tuple[int, int, int]] = {}

    def __call__(self, model: nn.Module, batch_size: int) -> int:
        """Return the bytes at a batch of this size; the model is left as it was."""
        shapes = decides_costs(model)
        if shapes not in self._counted:
            two, four = self._saved(model, 2), self._saved(model, 4)
            image = (four - two) // 2
            self._counted[shapes] = _state_bytes(model), two - 2 * image, image
        state, fixed, image = self._counted[shapes]
        return state + fixed + image * batch_size

    def _saved(self, model: nn.Module, batch_size: int) -> int:
        """Count the bytes of the storages that a forward pass saves, other than the model's own."""
        model = copied(model, computed(model)).train()
        own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
        saved: dict[int, Tensor] = {}

        def remember(tensor: Tensor) -> Tensor:
            saved[tensor.untyped_storage().data_ptr()] = tensor.detach()
            return tensor.detach()  # an operation that kept its own output, and with it itself, would never be freed

        images = self._example.to(next(model.parameters()).device).repeat(batch_size, *[1] * (self._example.dim() - 1))
        with random_state_kept(), torch.autograd.graph.saved_tensors_hooks(remember, lambda kept: kept):
            scores = model(images)
        del scores
        return sum(tensor.untyped_storage().nbytes() for place, tensor in saved.items() if place not in own)


def _state_bytes(model: nn.Module) -> int:
    parameters = sum(tensor.numel() * tensor.element_size() for tensor in model.parameters())
    return 3 * parameters + sum(tensor.numel() * tensor.element_size() for tensor in model.buffers())
