"""Finds the layer that makes a network's logits."""

from __future__ import annotations

from torch import nn

from hfp.errors import InputError


def classifier_of(model: nn.Module, num_classes: int | None = None) -> nn.Module:
    """Find the layer whose outputs are the classes, which pruning must leave alone.

    It is `model.get_classifier()` where there is one, as in hfp's own networks and timm's. Else it is the last linear
    or convolution layer in the order of registration, as in torchvision's.

    Args:
        model: the network.
        num_classes: look only at layers with this many outputs; by default at all of them.

    Returns:
        The layer, or one `nn.ModuleList` of several heads.

    Raises:
        InputError: the network has no such layer.
    """
    get_classifier = getattr(model, "get_classifier", None)
    if callable(get_classifier):
        found = get_classifier()
        head = nn.ModuleList(found) if isinstance(found, (tuple, list)) else found
        if isinstance(head, nn.Module) and any(True for _ in head.parameters()):
            return head
    else:
        layers = [layer for layer in model.modules() if num_classes in (None, _outputs(layer)) and _outputs(layer)]
        if layers:
            return layers[-1]
    wanted = "" if num_classes is None else f" of {num_classes} outputs"
    raise InputError(f"{type(model).__name__} has no classifier layer{wanted}; make it with num_classes of 1 or more")


def _outputs(layer: nn.Module) -> int | None:
    if isinstance(layer, nn.Linear):
        return layer.out_features
    return layer.out_channels if isinstance(layer, nn.Conv2d) else None
