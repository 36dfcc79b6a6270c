"""Splits in memory: statistics, stratified subsets and augmentation against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hfp.data import augment
from hfp.data.dataset import Split, channel_statistics, make_dataset
from hfp.data.stratify import stratified_halves, stratified_subset


def random_images(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def crops_of(image: Tensor, padding: int, flip: bool) -> set[bytes]:
    """Every crop of one padded image, as bytes."""
    _, height, width = image.shape
    padded = np.pad(image.numpy(), ((0, 0), (padding, padding), (padding, padding)))
    found = set()
    for top in range(2 * padding + 1):
        for left in range(2 * padding + 1):
            crop = padded[:, top : top + height, left : left + width]
            found.add(crop.tobytes())
            if flip:
                found.add(crop[:, :, ::-1].tobytes())
    return found


def test_channel_statistics_equal_float64_over_several_chunks() -> None:
    images = random_images(5000, 2, 3, 3)
    mean, std = channel_statistics(images)
    values = images.double()
    torch.testing.assert_close(mean.double(), values.mean(dim=(0, 2, 3)), rtol=1e-6, atol=0)
    torch.testing.assert_close(std.double(), values.std(dim=(0, 2, 3), correction=0), rtol=1e-6, atol=0)


def test_normalised_training_images_have_mean_0_and_deviation_1() -> None:
    images = random_images(300, 3, 4, 5)
    labels = torch.zeros(300, dtype=torch.int64)
    dataset = make_dataset("made", Split(images, labels), Split(images[:9], labels[:9]), ("only",))
    normal = dataset.normalise(images)
    assert dataset.shape == (3, 4, 5)
    assert normal.dtype == torch.float32
    torch.testing.assert_close(normal.mean(dim=(0, 2, 3)), torch.zeros(3), rtol=0, atol=1e-5)
    torch.testing.assert_close(normal.std(dim=(0, 2, 3), correction=0), torch.ones(3), rtol=0, atol=1e-5)


def test_a_constant_channel_is_normalised_to_0() -> None:
    images = torch.full((4, 1, 2, 2), 7, dtype=torch.uint8)
    dataset = make_dataset("made", *[Split(images, torch.zeros(4, dtype=torch.int64))] * 2, ("only",))
    assert torch.equal(dataset.normalise(images), torch.zeros(4, 1, 2, 2))


def test_a_constant_channel_of_floats_has_deviation_1_although_its_sums_are_rounded() -> None:
    images = torch.full((5000, 1, 8, 8), 0.7)
    mean, std = channel_statistics(torch.cat([images, torch.rand(5000, 1, 8, 8)], 1))
    assert mean[0] == images[0, 0, 0, 0]
    assert std[0] == 1
    assert std[1] < 1


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.floats(0, 1), st.integers(0, 2**32))
def test_stratified_subset_keeps_the_shares(counts: list[int], share: float, seed: int) -> None:
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    size = len(counts) + round(share * (len(labels) - len(counts)))
    chosen = stratified_subset(labels, size, seed)
    assert len(np.unique(chosen)) == size
    assert np.all(np.diff(chosen) > 0)
    taken = np.bincount(labels[chosen], minlength=len(counts))
    assert taken.min() >= 1
    counted = np.array(counts)
    assert ((taken - 1) / counted).max() <= (taken / counted).min(), "a class got more before another got its share"
    assert np.array_equal(chosen, stratified_subset(labels, size, seed))


def test_stratified_halves_split_without_overlap() -> None:
    labels = np.repeat(np.arange(4), [2, 10, 50, 100])
    rest, chosen = stratified_halves(labels, 0.2, seed=3)
    assert np.array_equal(np.sort(np.concatenate([rest, chosen])), np.arange(162))
    assert np.bincount(labels[chosen]) == pytest.approx([1, 2, 10, 20], abs=1)
    assert len(chosen) == 32
    assert np.bincount(labels[rest]).min() >= 1


def test_stratified_halves_have_every_class_in_both() -> None:
    labels = np.repeat(np.arange(30), 2)
    rest, chosen = stratified_halves(labels, 0.2, seed=0)
    assert np.array_equal(labels[rest], np.arange(30))
    assert np.array_equal(labels[chosen], np.arange(30))


@pytest.mark.parametrize("flip", [False, True])
def test_augmented_images_are_crops_of_their_padded_originals(flip: bool) -> None:
    images = random_images(40, 2, 3, 5)
    before = images.clone()
    result = augment(images, torch.Generator().manual_seed(1), padding=2, flip=flip)
    assert torch.equal(images, before)
    assert result.shape == images.shape
    assert result.dtype == images.dtype
    for image, crop in zip(images, result, strict=True):
        assert crop.numpy().tobytes() in crops_of(image, 2, flip)


def test_augmentation_reaches_every_crop() -> None:
    image = random_images(1, 1, 3, 3)
    result = augment(image.expand(2000, -1, -1, -1), torch.Generator().manual_seed(0), padding=1)
    assert {crop.numpy().tobytes() for crop in result} == crops_of(image[0], 1, flip=True)


def test_augmentation_repeats_with_its_generator_and_can_do_nothing() -> None:
    images = random_images(8, 3, 6, 6).float()
    first, second = (augment(images, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(augment(images, torch.Generator(), padding=0, flip=False), images)


def test_augmented_images_of_one_channel_lie_in_plain_order() -> None:
    """Else convolutions take them for channels-last, where PyTorch's CPU backward crashes for four channels."""
    images = torch.zeros(4, 1, 8, 8, dtype=torch.uint8)
    assert augment(images, torch.Generator().manual_seed(0)).stride() == (64, 64, 8, 1)
