"""The layer that makes the logits is found in every kind of network."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hfp.errors import InputError
from hfp.models import classifier_of, create_model, models


def outputs(layer: nn.Module) -> int:
    return layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels


@pytest.mark.parametrize(
    "name",
    [
        *models(),
        "timm:resnet10t",
        "timm:mobilenetv3_small_050",
        "timm:vit_tiny_patch16_224",
        "timm:convnext_atto",
        "torchvision:alexnet",
        "torchvision:googlenet",
        "torchvision:inception_v3",
        "torchvision:squeezenet1_1",
        "torchvision:swin_t",
        "torchvision:vit_b_16",
    ],
)
def test_the_classifier_has_one_output_a_class(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name, num_classes=7)
    classifier = classifier_of(model)
    assert outputs(classifier) == 7
    assert classifier in list(model.modules())


def test_several_heads_come_together() -> None:
    with torch.device("meta"):
        model = create_model("deit_tiny_distilled_patch16_224", num_classes=7)
    heads = classifier_of(model)
    assert isinstance(heads, nn.ModuleList)
    assert list(heads) == [model.head, model.head_dist]


def test_a_network_of_the_callers_own_is_searched_by_outputs() -> None:
    body = nn.Conv2d(3, 7, 1)
    model = nn.Sequential(nn.Conv2d(3, 5, 1), body, nn.ReLU(), nn.Linear(7, 4))
    assert classifier_of(model) is model[3]
    assert classifier_of(model, num_classes=7) is body


def test_a_network_without_a_classifier_is_refused() -> None:
    with pytest.raises(InputError, match="Sequential has no classifier layer; make it with num_classes of 1 or more"):
        classifier_of(nn.Sequential(nn.ReLU()))
    with pytest.raises(InputError, match="Sequential has no classifier layer of 9 outputs"):
        classifier_of(nn.Sequential(nn.Linear(2, 3)), num_classes=9)
    timm = pytest.importorskip("timm")
    with pytest.raises(InputError, match="ResNet has no classifier layer"):
        classifier_of(timm.create_model("resnet10t", num_classes=0))
