"""VGG networks (Simonyan and Zisserman, arXiv 1409.1556) for small images, with batch-norm."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from hfp.models.layers import conv_bn, initialise, scaled

VGG16_STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
SMALL_STAGES = ((32, 32), (64, 64), (128, 128))


class VGG(nn.Module):
    """Stages of 3×3 convolutions, each followed by 2×2 max-pooling, then linear layers and the classifier.

    Pooling rounds up and the last maps are averaged, so images may have any size.

    Args:
        stages: for each stage, the channels of its convolutions.
        hidden: the outputs of the linear layers before the classifier.
        num_classes: the number of logits.
        in_channels: channels of the images.
        width: a factor on every layer's channels.
    """

    def __init__(
        self,
        stages: Sequence[Sequence[int]],
        hidden: Sequence[int] = (),
        num_classes: int = 10,
        in_channels: int = 3,
        *,
        width: float = 1.0,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = in_channels
        for stage in stages:
            for base in stage:
                outputs = scaled(base, width)
                layers += [conv_bn(inputs, outputs, 3), nn.ReLU()]
                inputs = outputs
            layers.append(nn.MaxPool2d(2, ceil_mode=True))
        layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        for base in hidden:
            layers += [nn.Linear(inputs, scaled(base, width)), nn.ReLU()]
            inputs = scaled(base, width)
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(inputs, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Map images `[batch, channels, height, width]` to logits `[batch, classes]`."""
        return self.classifier(self.features(x))

    def get_classifier(self) -> nn.Linear:
        """Return the layer that makes the logits."""
        return self.classifier
