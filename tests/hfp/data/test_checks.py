"""Data of one's own is looked at before anything trains, and a data set says what it holds."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import hfp
from hfp.data import Dataset, Split, from_tensors, load, load_dataset, make_dataset, register_dataset
from hfp.data.dataset import check_dataset
from hfp.errors import InputError
from hfp.federation.setup import set_up

CLASSES = ("a", "b", "c")


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(load, "_LOADERS", dict(load._LOADERS))
    yield


def blob(samples: int) -> tuple[Tensor, Tensor]:
    labels = torch.arange(samples) % 3
    return torch.randn(samples, 3, 8, 8, generator=torch.Generator().manual_seed(samples)), labels


def changed(images: Tensor, value: float) -> Tensor:
    images = images.clone()
    images[5, 0, 0, 0] = value
    return images


X, Y = blob(30)
TX, TY = blob(12)
WRONG = {
    "a label beyond the classes": ((X, Y + 1, TX, TY), r"training split: labels must be in \[0, 3\).*found 3"),
    "a negative label": ((X, Y, TX, TY - 1), r"test split: labels must be in \[0, 3\).*found -1"),
    "float labels": ((X, Y.float(), TX, TY), "labels must be int64 .*found torch.float32"),
    "fewer labels than images": ((X, Y[:20], TX, TY), "as many labels as images, at least one; found 30 and 20"),
    "test images of one channel": ((X, Y, TX[:, :1], TY), r"training samples' shape \[3, 8, 8\]; found \[1, 8, 8\]"),
    "test images of another type": ((X, Y, (TX * 9).byte(), TY), "training samples' dtype torch.float32"),
    "an empty test set": ((X, Y, TX[:0], TY[:0]), "test split: .*at least one; found 0 and 0"),
    "an empty training set": ((X[:0], Y[:0], TX, TY), "training split: .*at least one; found 0 and 0"),
    "a pixel that is NaN": ((changed(X, float("nan")), Y, TX, TY), "training split: image 5 holds NaN or infinite"),
    "an infinite pixel": ((X, Y, changed(TX, float("inf")), TY), "test split: image 5 holds NaN or infinite"),
    "a pixel beyond single precision": (
        (changed(X.double(), 1e39), Y, TX.double(), TY),
        "image 5 .*beyond float32",
    ),
    "sparse images": ((X.to_sparse(), Y, TX, TY), "images must be a dense tensor; found torch.sparse_coo"),
    "images on another device": ((X.to("meta"), Y, TX, TY), "images must be in main memory; found them on meta"),
    "labels on another device": ((X, Y.to("meta"), TX, TY), "labels must be in main memory.*use labels.cpu()"),
    "images without channels": ((X[:, :0], Y, TX[:, :0], TY), r"with no side of 0; found \[30, 0, 8, 8\]"),
    "images without pixels": ((X[..., :0], Y, TX[..., :0], TY), r"with no side of 0; found \[30, 3, 8, 0\]"),
    "arrays": ((X.numpy(), Y, TX, TY), "images must be a tensor; found ndarray"),
    "whole numbers": (
        (X.int(), Y, TX.int(), TY),
        r"images must be uint8 or floats; found torch.int32; use images.float\(\)",
    ),
    "one number a sample": (
        (X[:, 0, 0, 0], Y, TX[:, 0, 0, 0], TY),
        r"images must be \[samples, ...\], with one more dimension at least; found \[30\]; use images.unsqueeze\(1\)",
    ),
    "signals": ((X[..., 0], Y, TX[..., 0], TY), r"images \[samples, channels, height, width\]; found \[30, 3, 8\]"),
}


@pytest.mark.parametrize("case", WRONG)
def test_data_that_can_not_be_trained_on_is_refused_in_one_line(case: str) -> None:
    (images, labels, test_images, test_labels), message = WRONG[case]
    with pytest.raises(InputError, match=message) as caught:
        make_dataset("mine", Split(images, labels), Split(test_images, test_labels), CLASSES)
    assert "\n" not in str(caught.value)
    assert "data set mine" in str(caught.value)


def test_a_pair_in_place_of_a_split_is_refused() -> None:
    with pytest.raises(InputError, match=r"training split: expected a hfp.data.Split\(images, labels\); found tuple"):
        make_dataset("mine", (X, Y), Split(TX, TY), CLASSES)  # type: ignore[arg-type]


def test_labels_that_count_no_classes_are_refused() -> None:
    with pytest.raises(InputError, match="data set tensors: labels must count classes from 0; found 2000000"):
        from_tensors(X, Y * 1_000_000, TX, TY)


def test_values_that_vary_less_than_single_precision_holds_are_zeros() -> None:
    made = make_dataset("mine", Split(X.double() * 1e-60, Y), Split(TX.double() * 1e-60, TY), CLASSES)
    assert not made.normalise(made.train.images).any()


def test_a_registered_loader_that_makes_its_data_set_itself_is_checked_too() -> None:
    data = make_dataset("mine", Split(X, Y), Split(TX, TY), CLASSES)
    broken = Dataset("mine", Split(X, Y[:20]), data.test, CLASSES, data.shape, data.mean, data.std)
    register_dataset("mine", lambda request: broken)
    with pytest.raises(InputError, match="data set mine, training split: expected as many labels as images"):
        load_dataset("mine")


def test_a_loader_that_returns_something_else_is_refused() -> None:
    register_dataset("mine", lambda request: (X, Y))  # type: ignore[arg-type, return-value]
    with pytest.raises(InputError, match="loader of data set mine must return a hfp.data.Dataset; found tuple"):
        load_dataset("mine")


def test_data_of_one_class_is_refused() -> None:
    register_dataset("mine", lambda request: make_dataset("mine", Split(X, Y * 0), Split(TX, TY * 0), ("a",)))
    with pytest.raises(InputError, match="data set mine has the class a alone; two or more are needed"):
        load_dataset("mine")


@pytest.mark.parametrize("kind", [torch.float32, torch.complex64, torch.bool])
def test_tensors_with_labels_of_another_kind_are_refused_in_one_line(kind: torch.dtype) -> None:
    labels = torch.full((30,), math.nan).to(kind)
    with pytest.raises(InputError, match=r"data set tensors, training split: labels must be int64 \[samples\]"):
        from_tensors(X, labels, TX, TY)


def test_numbers_as_names_of_classes_are_refused() -> None:
    with pytest.raises(InputError, match="data set tensors: the names of classes must be texts; found 0"):
        from_tensors(X, Y, TX, TY, classes=[0, 1, 2])  # type: ignore[list-item]


def test_training_on_images_that_require_gradients_leaves_them_alone() -> None:
    images = X.clone().requires_grad_()
    mine = make_dataset("mine", Split(images, Y), Split(TX, TY), CLASSES)
    plain = make_dataset("mine", Split(X, Y), Split(TX, TY), CLASSES)
    found, expected = (
        hfp.simulate(hfp.Experiment(dataset=data, clients=2, rounds=1, head_start=1)) for data in (mine, plain)
    )
    assert images.grad is None
    assert all(torch.equal(found.global_state[name], value) for name, value in expected.global_state.items())


def test_a_data_set_of_one_class_is_refused_in_an_experiment_too() -> None:
    alone = from_tensors(X, Y * 0, TX, TY * 0, name="mine")
    with pytest.raises(InputError, match="data set mine has the class 0 alone; two or more are needed"):
        set_up(hfp.Experiment(dataset=alone, clients=2))


@pytest.mark.parametrize(
    ("owners", "message"),
    [
        (torch.arange(29) % 2, r"int64 \[30\], a client for each sample; found torch.int64 \[29\]"),
        (torch.arange(31) % 2, r"int64 \[30\], a client for each sample; found torch.int64 \[31\]"),
        (torch.arange(30) % 2.0, "found torch.float32"),
        ([0, 1] * 15, "found list"),
        (torch.arange(30) % 2 - 1, "count from 0; found -1"),
    ],
)
def test_owners_that_are_no_client_for_every_sample_are_refused(owners: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_dataset("mine", Split(X, Y), Split(TX, TY), CLASSES, owners=owners)
    whole = make_dataset("mine", Split(X, Y), Split(TX, TY), CLASSES)
    with pytest.raises(InputError, match=message):
        check_dataset(dataclasses.replace(whole, owners=owners))


@pytest.mark.parametrize(("field", "value"), [("std", 0.0), ("std", -1.0), ("std", math.nan), ("mean", math.inf)])
def test_statistics_that_would_make_samples_infinite_are_refused(field: str, value: float) -> None:
    whole = make_dataset("mine", Split(X, Y), Split(TX, TY), CLASSES)
    with pytest.raises(InputError, match=f"data set mine: {field} must be finite numbers"):
        check_dataset(dataclasses.replace(whole, **{field: torch.full((3,), value)}))


def test_statistics_of_any_precision_make_samples_of_single_precision() -> None:
    whole = make_dataset("mine", Split(X, Y), Split(TX, TY), CLASSES)
    double = dataclasses.replace(whole, mean=whole.mean.double(), std=whole.std.double())
    assert torch.equal(double.normalise(X), whole.normalise(X))
    assert double.normalise(X).dtype == torch.float32


def test_a_data_set_says_what_it_holds() -> None:
    data = make_dataset("mine", Split(X, Y), Split(TX, TY), CLASSES, ("half of it is upside down",))
    assert data.description == (
        "mine: 30 training and 12 test images of 3x8x8 in 3 classes (a, b, c); half of it is upside down"
    )


@pytest.mark.parametrize("shape", [(7,), (2, 5), (3, 4, 4), (1, 2, 3, 4)])
def test_samples_of_any_shape_are_normalised_along_their_first_dimension(shape: tuple[int, ...]) -> None:
    samples = torch.randn(6, *shape, generator=torch.Generator().manual_seed(0))
    mean, std = torch.arange(shape[0]).float(), 2 + torch.arange(shape[0]).float()
    data = Dataset("any", Split(samples, Y[:6]), Split(samples, Y[:6]), CLASSES, shape, mean, std)
    normal = data.normalise(samples)
    assert normal.shape == samples.shape
    for channel in range(shape[0]):
        assert torch.equal(normal[:, channel], (samples[:, channel] - mean[channel]) / std[channel])
