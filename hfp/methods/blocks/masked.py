"""Training under a mask of single weights, and the reply of a client that did."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hfp.costs.macs import TRAINING_FACTOR, macs_per_weight, parameters
from hfp.methods.blocks import sparse
from hfp.methods.blocks.sparse import Masks
from hfp.methods.interface.client_context import ClientContext
from hfp.methods.interface.values import Reply, State
from hfp.training.local_step import LocalResult, Objective

MASK, SUM = "mask/", "sum/"


class MaskedGradients(Objective):
    """Cross-entropy whose gradients reach active weights alone; with `measure` it also sums those of all weights.

    Args:
        masks: booleans by parameter name, true where a weight is active.
        device: the device of the model.
        measure: whether to sum the gradients of all weights, active or not, over the steps.
    """

    def __init__(self, masks: Masks, device: torch.device, *, measure: bool = False) -> None:
        self.tensors = {MASK + name: mask.to(device) for name, mask in masks.items()}
        if measure:
            self.tensors |= {SUM + name: torch.zeros(mask.shape, device=device) for name, mask in masks.items()}

    def constants(self) -> tuple[()]:
        """All that steps depend on is among the tensors."""
        return ()

    def gradients(self, model: nn.Module) -> None:
        """Sum the gradients where that is asked for, then clear those of weights that are not active."""
        for name, parameter in model.named_parameters():
            mask = self.tensors.get(MASK + name)
            if mask is None or parameter.grad is None:
                continue
            if SUM + name in self.tensors:
                self.tensors[SUM + name].add_(parameter.grad)
            parameter.grad *= mask

    def sums(self) -> dict[str, Tensor]:
        """The summed gradients by parameter name; none where they were not measured."""
        return {name.removeprefix(SUM): total for name, total in self.tensors.items() if name.startswith(SUM)}


def masked_macs(local: ClientContext, model: nn.Module, masks: Masks) -> int:
    """Count the multiply-accumulates of one image through a model, as if weights that are not active cost nothing."""
    return local.count(model) - sparse.saved_macs(masks, macs_per_weight(local.model, local.count.example))


def masked_reply(
    local: ClientContext,
    model: nn.Module,
    masks: Masks,
    result: LocalResult,
    also: State,
    *,
    training_macs: int | None = None,
) -> Reply:
    """The reply of a client that trained under masks: its active values, and what active weights cost.

    Args:
        local: the client.
        model: what it trained, with all weights.
        masks: which weights are active; their values are sent as rows.
        result: what training took.
        also: further tensors to send.
        training_macs: the multiply-accumulates of all steps; by default every step trained under these masks.
    """
    size = sum(mask.numel() for mask in masks.values())
    forward = masked_macs(local, model, masks)
    return Reply(
        tensors={**sparse.gather(model.state_dict(), masks), **also},
        steps=result.steps,
        samples=result.samples,
        loss=result.loss,
        parameters=parameters(model) - size + sparse.count(masks),
        forward_macs=forward,
        training_macs=TRAINING_FACTOR * forward * result.samples if training_macs is None else training_macs,
        peak_bytes=local.peak(model) + size,
        variance=result.variance,
    )
