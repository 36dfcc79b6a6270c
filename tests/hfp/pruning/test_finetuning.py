"""The short repair: it learns, it is repeatable, and it leaves the model as it was but for its weights."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch import nn

import hfp
from hfp.data import Dataset, load_dataset
from hfp.data.dataset import Split
from hfp.pruning.finetuning import accuracy, finetune, training_batches


def digits() -> Dataset:
    return load_dataset("digits", limit=200)


def test_it_learns_and_is_repeatable():
    torch.manual_seed(0)
    model = hfp.create_model("resnet8", in_channels=1)
    twin = copy.deepcopy(model)
    data = digits()
    before = accuracy(model, data)
    seen: list[tuple[int, int]] = []
    finetune(
        model, data, 4, learning_rate=0.05, augmented=False, progress=lambda step, steps, _: seen.append((step, steps))
    )
    finetune(twin, data, 4, learning_rate=0.05, augmented=False)
    assert accuracy(model, data) > max(before + 0.2, 0.4)
    assert seen[-1] == (16, 16)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), twin.state_dict().values(), strict=True))


@pytest.mark.parametrize("images", [1, 16, 17, 18, 33])
def test_the_steps_that_are_told_are_taken(images):
    data = load_dataset("digits", limit=100)
    data = dataclasses.replace(data, train=Split(data.train.images[:images], data.train.labels[:images]))
    seen: list[tuple[int, int]] = []
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    finetune(model, data, 2, batch_size=16, progress=lambda step, steps, _: seen.append((step, steps)))
    steps = 2 * len(training_batches(data, 16, 9, torch.device("cpu")))
    assert seen == [(step, steps) for step in range(1, steps + 1)]


def test_modes_gradients_and_frozen_parameters_stay():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    model.eval()
    model[1].bias.requires_grad_(False)
    bias = model[1].bias.clone()
    finetune(model, digits(), 1)
    assert not any(module.training for module in model.modules())
    assert model[1].weight.grad is None
    assert torch.equal(model[1].bias, bias)


def test_accuracy_counts_the_whole_test_split():
    data = digits()

    class Knows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))
            self.seen = 0

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            labels = data.test.labels[self.seen : self.seen + len(images)]
            self.seen += len(images)
            right = torch.where(torch.arange(len(labels)) % 4 > 0, labels, (labels + 1) % 10)
            return nn.functional.one_hot(right, 10) * self.scale

    size = len(data.test)
    assert accuracy(Knows(), data, batch_size=64) == sum(index % 64 % 4 > 0 for index in range(size)) / size


def test_batches_to_score_with_are_normalised_and_drawn_at_random():
    data = digits()
    batches = training_batches(data, 32, 3, torch.device("cpu"))
    assert [len(labels) for _, labels in batches] == [32, 32, 32]
    assert abs(torch.cat([images for images, _ in batches]).mean().item()) < 0.2
    assert not torch.equal(batches[0][1], data.train.labels[:32])
