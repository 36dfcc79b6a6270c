"""Find the layer that makes a network's logits."""

from __future__ import annotations

from torch import nn

from hfp.errors import InputError


def classifier_of(model: nn.Module) -> nn.Module:
    """The layer whose outputs are the classes, which pruning must leave alone.

    That is `model.get_classifier()` where there is one (ours and timm's), else the last linear or convolution layer
    in the order of registration (torchvision's). Several heads come in one `nn.ModuleList`.

    Raises:
        InputError: the network has no such layer.
    """
    if hasattr(model, "get_classifier"):
        found = model.get_classifier()
        head = nn.ModuleList(found) if isinstance(found, (tuple, list)) else found
        if isinstance(head, nn.Module) and any(True for _ in head.parameters()):
            return head
    else:
        layers = [layer for layer in model.modules() if isinstance(layer, (nn.Linear, nn.Conv2d))]
        if layers:
            return layers[-1]
    raise InputError(f"{type(model).__name__} has no classifier layer; make it with num_classes of 1 or more")
