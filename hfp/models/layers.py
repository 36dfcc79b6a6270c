"""Layers that the bundled networks share."""

from __future__ import annotations

import math

from torch import nn

from hfp.errors import InputError


def conv_bn(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """Make a convolution, which divides the size of its input by the stride, followed by batch-norm."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


def initialise(model: nn.Module) -> None:
    """Draw Kaiming-normal weights of convolutions (fan-out) and linear layers (fan-in), and set biases to zero.

    The weights are drawn from torch's global generator.

    Source: He et al., arXiv 1502.01852.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
            nn.init.zeros_(module.bias)


def scaled(channels: int, width: float) -> int:
    """Multiply a number of channels by the width factor, and return at least 1.

    Raises:
        InputError: the factor is not a positive finite number.
    """
    if not (math.isfinite(width) and width > 0):
        raise InputError(f"width must be a positive finite number, found {width}")
    return max(1, round(channels * width))
