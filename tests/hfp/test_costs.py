import torch
from torch import nn

from hfp.costs import macs, parameters
from hfp.models import create_model


def test_macs_of_known_layers():
    assert macs(nn.Linear(7, 5), torch.zeros(3, 7)) == 3 * 7 * 5
    assert macs(nn.Conv2d(4, 6, 3, padding=1, groups=2), torch.zeros(2, 4, 5, 5)) == 2 * 6 * 25 * 2 * 9


def test_resnet32_is_the_papers_466_thousand_parameters():
    model = create_model("resnet32")
    assert round(parameters(model) / 1e3) == 467
    assert round(128 * macs(model, torch.zeros(1, 3, 32, 32)) / 1e9, 1) == 8.8


def test_counting_leaves_the_model_as_it_was():
    model = create_model("resnet8", in_channels=1)
    model.blocks.eval()
    modes = [module.training for module in model.modules()]
    statistics = model.stem[1].running_mean.clone()
    macs(model, torch.ones(2, 1, 8, 8))
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(model.stem[1].running_mean, statistics)
