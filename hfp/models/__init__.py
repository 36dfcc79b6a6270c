"""Networks by name: hfp's own small ones, timm's and torchvision's.

`create` makes a network by name, and `source` one from whatever a person may give. `resnet` and `vgg` are hfp's own.
`pretrained` and `weights` find weights, and `classifier` finds the layer that makes the logits. What needs torch is
loaded when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hfp.lazy import lazily

if TYPE_CHECKING:
    from hfp.models.classifier import classifier_of
    from hfp.models.create import create_model, models

__all__ = ["classifier_of", "create_model", "models"]

__getattr__, __dir__ = lazily(
    __name__, {"hfp.models.classifier": "classifier_of", "hfp.models.create": "create_model models"}
)
