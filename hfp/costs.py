"""What a model costs: multiply-accumulates and parameters."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def macs(model: nn.Module, example_inputs: Any) -> int:
    """Multiply-accumulates of one forward pass of `example_inputs`, whatever its batch: convolutions and products.

    Counted by PyTorch's own flop counter (two a multiply-accumulate), in evaluation mode; the model is left as it was.
    """
    modes = {module: module.training for module in model.modules()}
    inputs = example_inputs if isinstance(example_inputs, (tuple, list)) else (example_inputs,)
    counter = FlopCounterMode(display=False)
    try:
        model.eval()
        with torch.no_grad(), counter:
            model(*inputs)
    finally:
        for module, mode in modes.items():
            module.training = mode
    return counter.get_total_flops() // 2


def parameters(model: nn.Module) -> int:
    """How many parameters the model has; shared ones count once."""
    return sum(parameter.numel() for parameter in model.parameters())
