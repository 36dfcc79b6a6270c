"""ResNets for small images (He et al., arXiv 1512.03385, section 4.2) with projection shortcuts."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from hfp.models.layers import conv_bn, initialise, scaled


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut, which is the identity, or a 1×1 convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = conv_bn(inputs, outputs, 3, stride)
        self.second = conv_bn(outputs, outputs, 3)
        self.shortcut = nn.Identity() if inputs == outputs and stride == 1 else conv_bn(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[batch, inputs, height, width]` to `[batch, outputs, height / stride, width / stride]`."""
        return functional.relu(self.second(functional.relu(self.first(x))) + self.shortcut(x))


class ResNet(nn.Module):
    """Three stages of basic blocks with 16, 32 and 64 channels, which make `6 * blocks + 2` layers.

    The last maps are averaged, so images may have any size.

    Args:
        blocks: blocks per stage.
        num_classes: the number of logits.
        in_channels: channels of the images.
        width: a factor on every layer's channels.
    """

    def __init__(self, blocks: int, num_classes: int = 10, in_channels: int = 3, *, width: float = 1.0) -> None:
        super().__init__()
        channels = [scaled(base, width) for base in (16, 32, 64)]
        self.stem = conv_bn(in_channels, channels[0], 3)
        stages: list[nn.Module] = []
        inputs = channels[0]
        for stage, outputs in enumerate(channels):
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                stages.append(BasicBlock(inputs, outputs, stride))
                inputs = outputs
        self.blocks = nn.Sequential(*stages)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(inputs, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Map images `[batch, channels, height, width]` to logits `[batch, classes]`."""
        features = self.blocks(functional.relu(self.stem(x)))
        return self.classifier(self.pool(features).flatten(1))

    def get_classifier(self) -> nn.Linear:
        """Return the layer that makes the logits."""
        return self.classifier
