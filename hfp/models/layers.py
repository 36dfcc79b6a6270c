"""Layers that the bundled networks share."""

from __future__ import annotations

import math

from torch import nn

from hfp.errors import InputError


def conv_bn(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """A convolution that keeps the size (divided by the stride), and batch-norm."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


def initialise(model: nn.Module) -> None:
    """Kaiming-normal convolutions (fan-out) and linear layers (fan-in), zero biases (arXiv 1502.01852).

    Draws from torch's global generator: seed it outside (`torch.manual_seed`, `torch.random.fork_rng`).
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
            nn.init.zeros_(module.bias)


def scaled(channels: int, width: float) -> int:
    """Channels times the width factor, at least one.

    Raises:
        InputError: the factor is not a positive finite number.
    """
    if not (math.isfinite(width) and width > 0):
        raise InputError(f"width must be a positive finite number, found {width}")
    return max(1, round(channels * width))
