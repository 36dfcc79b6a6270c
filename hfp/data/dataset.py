"""Hold the images and labels of two splits, check them, and measure the statistics that normalise them."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from hfp.errors import InputError

CHUNK = 4096
_NAMED = 10  # a description lists this many classes


@dataclass(frozen=True, eq=False)
class Split:
    """Samples and their labels.

    Args:
        images: `[samples, channels, height, width]`, uint8 or floats. Data of one's own may have any shape `[samples,
            ...]`.
        labels: int64 `[samples]`.
        files: the file of every sample, relative to the data root, where samples come from files of their own.
    """

    images: Tensor
    labels: Tensor
    files: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Take images without the graph that they come from, so that training adds nothing to their gradients."""
        if isinstance(self.images, Tensor) and self.images.requires_grad:
            object.__setattr__(self, "images", self.images.detach())

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class Dataset:
    """A training and a test split over the same classes.

    Args:
        name: what errors and results call the data set.
        train: the training split.
        test: the test split.
        classes: the name of every label from 0 on.
        shape: the shape of one sample, `(channels, height, width)` for images.
        mean: the mean of each channel of the training images, `[channels]`, in the samples' own units. It is 0 for data
            that is taken as it is.
        std: the standard deviation of each channel, `[channels]`, in the same units. It is 1 for data that is taken as
            it is.
        notes: sentences about what the loader assumed or left out.
        owners: the client that each training sample belongs to, int64 `[samples]`, where the data set says so. The
            partition "own" deals the samples out in this way.

    >>> from hfp.data import load_dataset
    >>> digits = load_dataset("digits", limit=100)
    >>> print(digits.description)
    digits: 100 training and 359 test images of 1x8x8 in 10 classes (0, 1, 2, 3, 4, 5, 6, 7, 8, 9)
    >>> digits.normalise(digits.train.images[:4]).shape
    torch.Size([4, 1, 8, 8])
    """

    name: str
    train: Split
    test: Split
    classes: tuple[str, ...]
    shape: tuple[int, ...]
    mean: Tensor
    std: Tensor
    notes: tuple[str, ...] = ()
    owners: Tensor | None = None
    _constants: dict[torch.device, tuple[Tensor, Tensor]] = field(default_factory=dict, init=False, repr=False)

    @property
    def description(self) -> str:
        """Say in one line what was found: the images of both splits, their shape, the classes and the notes."""
        kind = "images" if len(self.shape) == 3 else "samples"
        shown = [*self.classes[:_NAMED], *(["..."] if len(self.classes) > _NAMED else [])]
        found = (
            f"{self.name}: {len(self.train):,} training and {len(self.test):,} test {kind} of "
            f"{'x'.join(map(str, self.shape))} in {len(self.classes)} classes ({', '.join(shown)})"
        )
        return "; ".join((found, *self.notes))

    @property
    def uneven(self) -> bool:
        """Whether one class has more than twice as many test samples as another: then accuracy says less than F1."""
        counts = torch.bincount(self.test.labels, minlength=len(self.classes))
        return bool(counts.max() > 2 * counts.min())

    def normalise(self, images: Tensor) -> Tensor:
        """Return samples `[samples, channels, ...]` as float32, less each channel's mean and divided by its deviation.

        The result is on the images' device; the input is not changed.
        """
        if images.device not in self._constants:
            self._constants[images.device] = self.mean.float().to(images.device), self.std.float().to(images.device)
        return normalised(images, *self._constants[images.device])


def normalised(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Return samples `[samples, channels, ...]` as float32, less `mean` and divided by `std`, both `[channels]`."""
    sides = (-1, *[1] * (images.dim() - 2))
    return (images.to(torch.float32) - mean.to(images.device).view(sides)) / std.to(images.device).view(sides)


def make_dataset(
    name: str,
    train: Split,
    test: Split,
    classes: tuple[str, ...],
    notes: tuple[str, ...] = (),
    *,
    owners: Tensor | None = None,
) -> Dataset:
    """Put two splits of images together and measure the training images.

    Args:
        name: what errors and results call the data set.
        train: images `[samples, channels, height, width]`, uint8 or floats, and int64 labels.
        test: images of the same shape and dtype, and their labels.
        classes: a name for every label from 0 on.
        notes: sentences about what was assumed or left out, for the data set's `description`.
        owners: the client of every training image, int64 `[samples]`, for the partition "own"; by default nobody's.

    Returns:
        The data set, with the mean and standard deviation of the training images.

    Raises:
        InputError: a split fails `check_splits`, its samples are not images, or `owners` fails `check_dataset`.

    >>> import torch
    >>> images, labels = torch.rand(30, 1, 8, 8), torch.arange(30) % 2
    >>> made = make_dataset("mine", Split(images[:20], labels[:20]), Split(images[20:], labels[20:]), ("cat", "dog"))
    >>> print(made.description)
    mine: 20 training and 10 test images of 1x8x8 in 2 classes (cat, dog)
    """
    check_splits(name, train, test, classes)
    if train.images.dim() != 4:
        raise InputError(
            f"data set {name}: expected images [samples, channels, height, width]; found {list(train.images.shape)}; "
            "make data of another shape with hfp.data.from_tensors"
        )
    _check_owners(name, owners, len(train))
    mean, std = channel_statistics(train.images)
    shape = tuple(train.images.shape[1:])
    return Dataset(name, train, test, tuple(classes), shape, mean, std, tuple(notes), owners)


def check_dataset(dataset: Dataset) -> None:
    """Refuse a data set that can't be trained and tested on, or that contradicts itself.

    Raises:
        InputError: its splits fail `check_splits`, it has one class alone, its shape is not that of its samples, its
            mean or standard deviation is not one finite number per channel (the latter above 0), or its owners are not
            one client per training sample.
    """
    check_splits(dataset.name, dataset.train, dataset.test, dataset.classes)
    if len(dataset.classes) < 2:
        only = ", ".join(dataset.classes)
        raise InputError(f"data set {dataset.name} has the class {only} alone; two or more are needed")
    shape = tuple(dataset.train.images.shape[1:])
    if tuple(dataset.shape) != shape:
        raise InputError(f"data set {dataset.name}: shape says {list(dataset.shape)}; its samples are {list(shape)}")
    for what, found in (("mean", dataset.mean), ("std", dataset.std)):
        if tuple(found.shape) != shape[:1]:
            raise InputError(
                f"data set {dataset.name}: {what} must have one number for each of {shape[0]} channels; found "
                f"{list(found.shape)}"
            )
        if not found.isfinite().all() or (what == "std" and not (found > 0).all()):
            words = "finite numbers above 0" if what == "std" else "finite numbers"
            raise InputError(f"data set {dataset.name}: {what} must be {words}; found {found.tolist()}")
    _check_owners(dataset.name, dataset.owners, len(dataset.train))


def _check_owners(name: str, owners: Tensor | None, samples: int) -> None:
    """Refuse owners that are not one client, counted from 0, for each training sample."""
    if owners is None:
        return
    found = f"{owners.dtype} {list(owners.shape)}" if isinstance(owners, Tensor) else type(owners).__name__
    if not isinstance(owners, Tensor) or owners.dtype != torch.int64 or owners.shape != (samples,):
        raise InputError(f"data set {name}: owners must be int64 [{samples}], a client for each sample; found {found}")
    if int(owners.min()) < 0:
        raise InputError(f"data set {name}: owners must be clients, which count from 0; found {int(owners.min())}")


def check_splits(name: str, train: Split, test: Split, classes: tuple[str, ...]) -> None:
    """Refuse two splits that can't be trained and tested on, before anything is done with them.

    Raises:
        InputError: a split is empty or is not a pair of dense tensors in main memory; its samples are empty, have no
            dimension of their own, or are neither uint8 nor floats that are finite in single precision; it has another
            number of labels than samples; its labels are not int64 or are not indices of `classes`; a class's name is
            no text; or the two splits hold samples of different shapes or dtypes.
    """
    unnamed = [found for found in classes if not isinstance(found, str)]
    if unnamed:
        raise InputError(f"data set {name}: the names of classes must be texts; found {unnamed[0]!r}")
    for part, split in (("training", train), ("test", test)):
        _check_split(f"data set {name}, {part} split", split, len(classes))
    for what, one, other in (
        ("shape", list(train.images.shape[1:]), list(test.images.shape[1:])),
        ("dtype", train.images.dtype, test.images.dtype),
    ):
        if one != other:
            raise InputError(
                f"data set {name}: the test samples must have the training samples' {what} {one}; found {other}"
            )


def _check_split(where: str, split: Split, classes: int) -> None:
    if not (hasattr(split, "images") and hasattr(split, "labels")):
        raise InputError(f"{where}: expected a hfp.data.Split(images, labels); found {type(split).__name__}")
    images, labels = split.images, split.labels
    for what, found in (("images", images), ("labels", labels)):
        if not isinstance(found, Tensor):
            raise InputError(f"{where}: {what} must be a tensor; found {type(found).__name__}; use torch.as_tensor")
        if found.layout != torch.strided:
            raise InputError(f"{where}: {what} must be a dense tensor; found {found.layout}; use {what}.to_dense()")
        if found.device.type != "cpu":
            raise InputError(f"{where}: {what} must be in main memory; found them on {found.device}; use {what}.cpu()")
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise InputError(f"{where}: images must be uint8 or floats; found {images.dtype}; use images.float()")
    if images.dim() < 2:
        raise InputError(
            f"{where}: images must be [samples, ...], with one more dimension at least; found {list(images.shape)}; "
            "use images.unsqueeze(1) where a sample is one number"
        )
    if 0 in images.shape[1:]:
        raise InputError(f"{where}: images must be [samples, ...] with no side of 0; found {list(images.shape)}")
    if labels.dtype != torch.int64 or labels.dim() != 1:
        raise InputError(
            f"{where}: labels must be int64 [samples]; found {labels.dtype} {list(labels.shape)}; use labels.long()"
        )
    if not len(images) or len(images) != len(labels):
        raise InputError(
            f"{where}: expected as many labels as images, at least one; found {len(images)} and {len(labels)}"
        )
    check_labels(where, labels, classes)
    if images.is_floating_point():
        for number, chunk in enumerate(images.split(CHUNK)):
            finite = chunk.flatten(1).to(torch.float32).isfinite().all(1)
            if not finite.all():
                first = number * CHUNK + int(finite.logical_not().nonzero()[0])
                raise InputError(
                    f"{where}: image {first} holds NaN or infinite values, or ones beyond float32; mend or remove it"
                )


def check_labels(where: str, labels: Tensor, classes: int) -> None:
    """Refuse labels that are not the index of a class.

    Raises:
        InputError: a label is out of range; the message names it and the number of classes.
    """
    least, most = int(labels.min()), int(labels.max())
    if least < 0 or most >= classes:
        found = least if least < 0 else most
        raise InputError(f"{where}: labels must be in [0, {classes}), one per class; found {found}")


def channel_statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Measure the mean and standard deviation `[channels]` (float32) of images `[samples, channels, height, width]`.

    The sums are float64 and are made a part at a time, so that no float copy of all images is needed. A channel without
    any variation gets deviation 1, so that it is 0 after normalising.
    """
    total = torch.zeros(images.shape[1], dtype=torch.float64)
    squares, varies = torch.zeros_like(total), torch.zeros(images.shape[1], dtype=torch.bool)
    for chunk in images.split(CHUNK):
        values = chunk.to(torch.float64)
        total += values.sum(dim=(0, 2, 3))
        squares += values.square().sum(dim=(0, 2, 3))
        varies |= (chunk != images[:1, :, :1, :1]).any(3).any(2).any(0)
    count = images.numel() // images.shape[1]
    mean = total / count
    std = (squares / count - mean.square()).clamp(min=0).sqrt()
    # sums of floats are rounded, so that the deviation of equal values need not be 0, nor single precision hold it
    return mean.float(), torch.where(varies & (std.float() > 0), std, 1.0).float()
