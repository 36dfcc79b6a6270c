"""The bundled networks: the paper's sizes, any image size, and channels that torch-pruning can follow."""

from __future__ import annotations

import pytest
import torch
import torch_pruning as tp
from torch import nn

from hfp.errors import InputError
from hfp.models import classifier_of, create_model, models

PARAMETERS = {
    "resnet8": 78_042,
    "resnet20": 272_474,
    "resnet32": 466_906,
    "resnet56": 855_770,
    "vgg16": 14_986_698,
    "vgg-small": 288_746,
}
MACS_AT_32 = {
    "resnet8": 12_677_770,
    "resnet20": 41_218_698,
    "resnet32": 69_759_626,
    "resnet56": 126_841_482,
    "vgg16": 314_419_722,
    "vgg-small": 39_038_218,
}
SMALL = {name: {"width": 0.125} if name in ("vgg16", "resnet56") else {} for name in models()}


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", models())
def test_sizes_are_those_of_the_paper(name: str) -> None:
    model = create_model(name)
    macs, counted = tp.utils.count_ops_and_params(model, torch.zeros(1, 3, 32, 32))
    assert parameters(model) == counted == PARAMETERS[name]
    assert macs == MACS_AT_32[name]


def test_half_of_the_channels_have_the_size_of_the_paper() -> None:
    assert parameters(create_model("vgg16", width=0.5)) == pytest.approx(3.75e6, rel=0.003)
    assert parameters(create_model("resnet32", width=0.5)) == pytest.approx(466_906 / 4, rel=0.02)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [8, 28, 33])
@pytest.mark.parametrize("name", models())
def test_any_image_size_goes_forward_and_back(name: str, size: int, channels: int) -> None:
    model = create_model(name, num_classes=7, in_channels=channels, **SMALL[name])
    images = torch.randn(2, channels, size, size)
    logits = model(images)
    assert logits.shape == (2, 7)
    logits.square().sum().backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert torch.isfinite(parameter.grad).all(), parameter_name


def assert_pruned_by_half(name: str, size: int, channels: int) -> None:
    model = create_model(name, num_classes=7, in_channels=channels, **SMALL[name])
    before = {key: module.out_channels for key, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    images = torch.randn(2, channels, size, size)
    importance = tp.importance.MagnitudeImportance(p=1)
    ignored = [classifier_of(model)]
    tp.pruner.BasePruner(model, images, importance=importance, pruning_ratio=0.5, ignored_layers=ignored).step()
    for key, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            assert module.out_channels == before[key] // 2, key
    logits = model(images)
    assert logits.shape == (2, 7)
    logits.sum().backward()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", models())
def test_every_channel_can_be_pruned(name: str, channels: int) -> None:
    assert_pruned_by_half(name, 28, channels)
    assert_pruned_by_half(name, 8, channels)


def test_shortcuts_are_projections_where_the_shape_changes_only() -> None:
    model = create_model("resnet20")
    projections = [block.shortcut for block in model.blocks if not isinstance(block.shortcut, nn.Identity)]
    assert [(p[0].in_channels, p[0].out_channels, p[0].kernel_size, p[0].stride) for p in projections] == [
        (16, 32, (1, 1), (2, 2)),
        (32, 64, (1, 1), (2, 2)),
    ]


def test_weights_come_from_the_global_generator() -> None:
    states = []
    for seed in (0, 0, 1):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            states.append(create_model("resnet8").state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert any(not torch.equal(states[0][key], states[2][key]) for key in states[0])


def test_kaiming_weights_keep_the_scale_of_the_signal() -> None:
    torch.manual_seed(0)
    model = create_model("vgg16")
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            deviation = (2 / (module.out_channels * 9)) ** 0.5
            assert module.weight.std().item() == pytest.approx(deviation, rel=0.1)


def test_timm_and_torchvision_follow_by_name() -> None:
    assert type(create_model("resnet10t", in_channels=1)).__module__ == "timm.models.resnet"
    assert type(create_model("resnet18", 3)).__module__ == "timm.models.resnet"
    assert type(create_model("torchvision:resnet18", 3)).__module__ == "torchvision.models.resnet"
    assert type(create_model("shufflenet_v2_x0_5", 3)).__module__ == "torchvision.models.shufflenetv2"
    assert type(create_model("vgg16", width=0.1)).__module__ == "hfp.models.vgg"
    assert create_model("timm:resnet10t", 5, 2)(torch.zeros(2, 2, 32, 32)).shape == (2, 5)
    assert parameters(create_model("resnet10t", stem_width=8)) < parameters(create_model("resnet10t"))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnt32", {}, "unknown model 'resnt32'; did you mean resnet32"),
        ("mobilnetv3_small_050", {}, "unknown model .* did you mean mobilenetv3_small_050"),
        ("timm:resnet32", {}, "unknown timm model 'resnet32'; did you mean"),
        ("torchvision:resnet20", {}, "unknown torchvision model 'resnet20'; did you mean"),
        ("tim:resnet18", {}, "unknown source of models 'tim'; did you mean timm"),
        ("resnet20", {"widht": 2}, "unknown option of resnet20 'widht'; did you mean width"),
        ("resnet20", {"width": 0.0}, "width must be a positive finite number, found 0.0"),
        ("resnet10t", {"widht": 2}, "timm can't make resnet10t with .*widht"),
        ("torchvision:resnet18", {"widht": 2}, "torchvision can't make resnet18 with .*widht"),
        ("torchvision:vit_b_16", {"image_size": 100}, "torchvision can't make vit_b_16 .*Input shape indivisible"),
        ("resnet8", {"width": "half"}, "hfp can't make resnet8 with .*half"),
        ("resnet8", {"width": 1e9}, "hfp can't make resnet8 with .*memory"),
        ("resnet8", {"num_classes": 2.5}, "hfp can't make resnet8 with num_classes=2.5"),
        ("torchvision:resnet18", {"in_channels": 1}, "torchvision's resnet18 takes images of 3 channels, found 1"),
        ("resnet20", {"num_classes": 0}, "must be 1 or more, found num_classes=0, in_channels=3"),
        ("resnet20", {"in_channels": 0}, "must be 1 or more, found num_classes=10, in_channels=0"),
    ],
)
def test_what_can_not_be_made_is_refused(name: str, options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        create_model(name, **options)
    assert "\n" not in str(caught.value)
