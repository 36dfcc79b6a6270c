"""Data sets by name: what the files hold arrives, and what is missing or damaged is one clear line."""

from __future__ import annotations

import gzip
import hashlib
import pickle
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from torchvision.datasets import CIFAR10, CIFAR100

from hfp.data import Dataset, datasets, digits, fmnist, load_dataset
from hfp.errors import InputError


def assert_one_line(error: InputError) -> None:
    assert "\n" not in str(error)


def assert_same_data(first: Dataset, second: Dataset) -> None:
    for a, b in ((first.train, second.train), (first.test, second.test)):
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.labels, b.labels)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def write_idx(path: Path, array: np.ndarray, pack: bool) -> None:
    header = struct.pack(f">{1 + array.ndim}I", 0x0800 + array.ndim, *array.shape)
    content = header + array.tobytes()
    target = path.with_name(f"{path.name}.gz") if pack else path
    target.write_bytes(gzip.compress(content) if pack else content)


def write_fmnist(folder: Path, pack: bool = False) -> dict[str, np.ndarray]:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    arrays = {
        "train-images-idx3-ubyte": rng.integers(256, size=(40, 28, 28), dtype=np.uint8),
        "train-labels-idx1-ubyte": np.arange(40, dtype=np.uint8) % 10,
        "t10k-images-idx3-ubyte": rng.integers(256, size=(10, 28, 28), dtype=np.uint8),
        "t10k-labels-idx1-ubyte": np.arange(10, dtype=np.uint8),
    }
    for name, array in arrays.items():
        write_idx(folder / name, array, pack)
    return arrays


def write_cifar(root: Path, source: type[CIFAR10], classes: int, monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """Files in torchvision's format, with their checksums registered; the images of every file, in order."""
    folder = root / source.base_folder
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    key = "labels" if source is CIFAR10 else "fine_labels"
    images = []

    def write(name: str, content: dict) -> str:
        raw = pickle.dumps(content)
        (folder / name).write_bytes(raw)
        return hashlib.md5(raw).hexdigest()

    for attribute in ("train_list", "test_list"):
        sums = []
        for name, _ in getattr(source, attribute):
            images.append(rng.integers(256, size=(2 * classes, 3072), dtype=np.uint8))
            content = {"data": images[-1], key: [label % classes for label in range(2 * classes)]}
            sums.append([name, write(name, content)])
        monkeypatch.setattr(source, attribute, sums)
    names = {source.meta["key"]: [f"class {label}" for label in range(classes)]}
    monkeypatch.setattr(source, "meta", {**source.meta, "md5": write(source.meta["filename"], names)})
    return images


def test_digits_are_split_once_and_for_all() -> None:
    dataset = load_dataset("digits")
    assert dataset.shape == (1, 8, 8)
    assert dataset.classes == tuple("0123456789")
    assert (len(dataset.train), len(dataset.test)) == (1438, 359)
    assert dataset.train.images.dtype == torch.uint8
    assert dataset.train.images.max() == 16
    assert dataset.test.labels.bincount().min() >= 35
    assert_same_data(dataset, load_dataset("digits", seed=7))


def test_digits_hold_every_image_of_scikit_learn_once() -> None:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    dataset = load_dataset("digits")
    ours = [
        (int(label), image.numpy().tobytes())
        for split in (dataset.train, dataset.test)
        for image, label in zip(split.images, split.labels, strict=True)
    ]
    theirs = [(int(y), x.astype(np.uint8).tobytes()) for x, y in zip(bunch.images, bunch.target, strict=True)]
    assert sorted(ours) == sorted(theirs)


def test_a_limit_keeps_the_classes_and_the_test_split() -> None:
    whole = load_dataset("digits")
    limited = load_dataset("digits", limit=100, seed=1)
    assert limited.train.labels.bincount().tolist() == pytest.approx([10] * 10, abs=1)
    assert torch.equal(limited.test.images, whole.test.images)
    assert_same_data(limited, load_dataset("digits", limit=100, seed=1))
    assert not torch.equal(limited.train.images, load_dataset("digits", limit=100, seed=2).train.images)


@pytest.mark.parametrize("limit", [-1, 0, 9, 1439])
def test_a_limit_that_the_data_can_not_meet_is_refused(limit: int) -> None:
    with pytest.raises(InputError, match=f"limit must be between 10 .* 1438 training images of digits, found {limit}"):
        load_dataset("digits", limit=limit)


@pytest.mark.parametrize("given", [{"root": "."}, {"download": True}])
def test_digits_have_no_folder_and_no_download(given: dict[str, object]) -> None:
    with pytest.raises(InputError, match="digits is part of scikit-learn; leave out the data root and the download"):
        load_dataset("digits", **given)  # type: ignore[arg-type]


def test_a_home_of_nobody_is_no_folder() -> None:
    with pytest.raises(InputError, match="the data root ~nobody-of-this-name/data is not a folder"):
        load_dataset("cifar10", "~nobody-of-this-name/data")


def test_an_image_folder_has_no_download(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="imagefolder is a folder of your own; leave out the download"):
        load_dataset("imagefolder", tmp_path, download=True)


def test_digits_are_read_without_loading_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    digits._digits.cache_clear()
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    assert len(load_dataset("digits").train) == 1438


def test_digits_without_scikit_learn_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    digits._digits.cache_clear()
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(InputError, match=r'pip install "hfp\[examples\]"') as caught:
        load_dataset("digits")
    assert_one_line(caught.value)


@pytest.mark.parametrize("pack", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("layout", ["", "FashionMNIST/raw"], ids=["files", "torchvision"])
def test_fmnist_reads_every_layout(tmp_path: Path, layout: str, pack: bool) -> None:
    arrays = write_fmnist(tmp_path / layout, pack)
    dataset = load_dataset("fmnist", tmp_path)
    assert dataset.shape == (1, 28, 28)
    assert dataset.classes[9] == "Ankle boot"
    assert np.array_equal(dataset.train.images[:, 0].numpy(), arrays["train-images-idx3-ubyte"])
    assert np.array_equal(dataset.test.images[:, 0].numpy(), arrays["t10k-images-idx3-ubyte"])
    assert dataset.train.labels.tolist() == arrays["train-labels-idx1-ubyte"].tolist()
    assert dataset.train.labels.dtype == torch.int64
    limited = load_dataset("fmnist", tmp_path, limit=20)
    assert limited.train.labels.bincount().tolist() == [2] * 10


def test_fmnist_takes_the_system_package_when_no_root_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_fmnist(tmp_path, pack=True)
    monkeypatch.setattr(fmnist, "DEBIAN_FOLDER", tmp_path)
    assert len(load_dataset("fmnist").train) == 40


@pytest.mark.skipif(not fmnist.DEBIAN_FOLDER.is_dir(), reason="the package dataset-fashion-mnist is not installed")
def test_the_system_package_holds_all_of_fmnist() -> None:
    dataset = load_dataset("fmnist", limit=100)
    assert dataset.train.labels.bincount().tolist() == [10] * 10
    assert dataset.test.labels.bincount().tolist() == [1000] * 10


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _garble(path: Path) -> None:
    path.write_bytes(b"not what it should be" * 9)


@pytest.mark.parametrize("pack", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
@pytest.mark.parametrize("damage", [_truncate, _empty, _garble])
def test_damaged_fmnist_files_are_named(tmp_path: Path, name: str, pack: bool, damage: Callable[[Path], None]) -> None:
    write_fmnist(tmp_path, pack)
    damage(tmp_path / (f"{name}.gz" if pack else name))
    with pytest.raises(InputError, match=f"damaged file .*{name}.*; fetch it again") as caught:
        load_dataset("fmnist", tmp_path)
    assert_one_line(caught.value)


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("train-labels-idx1-ubyte", np.full(40, 10, dtype=np.uint8)),
        ("train-labels-idx1-ubyte", np.zeros(39, dtype=np.uint8)),
        ("train-images-idx3-ubyte", np.zeros((40, 28, 27), dtype=np.uint8)),
    ],
)
def test_fmnist_files_that_do_not_fit_together_are_refused(tmp_path: Path, name: str, array: np.ndarray) -> None:
    write_fmnist(tmp_path)
    write_idx(tmp_path / name, array, pack=False)
    with pytest.raises(InputError, match="damaged train files in .* expected as many labels"):
        load_dataset("fmnist", tmp_path)


def test_an_incomplete_fmnist_names_the_missing_file(tmp_path: Path) -> None:
    write_fmnist(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(InputError, match="lacks t10k-labels-idx1-ubyte"):
        load_dataset("fmnist", tmp_path)


def test_a_missing_fmnist_says_where_it_looked_and_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fmnist, "DEBIAN_FOLDER", tmp_path / "package")
    with pytest.raises(InputError, match=f"looked in {tmp_path / 'package'}") as caught:
        load_dataset("fmnist")
    for remedy in ("apt-get install dataset-fashion-mnist", "--data-root PATH", "--download"):
        assert remedy in str(caught.value)
    assert_one_line(caught.value)


def test_a_given_root_is_the_only_place_looked_in(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="data set fmnist not found") as caught:
        load_dataset("fmnist", tmp_path)
    assert str(fmnist.DEBIAN_FOLDER) not in str(caught.value)


def test_fmnist_is_downloaded_when_asked_and_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def download(self: fmnist.FashionMNIST) -> None:
        calls.append(self.root)
        write_fmnist(Path(self.raw_folder))

    monkeypatch.setattr(fmnist.FashionMNIST, "download", download)
    root = tmp_path / "new"
    assert len(load_dataset("fmnist", root, download=True).train) == 40
    assert_same_data(load_dataset("fmnist", root, download=True), load_dataset("fmnist", root))
    assert calls == [root]
    (root / "FashionMNIST" / "raw" / "t10k-labels-idx1-ubyte").unlink()  # as an interrupted download leaves it
    assert len(load_dataset("fmnist", root, download=True).test) == len(load_dataset("fmnist", root).test)
    assert calls == [root, root]


@pytest.mark.parametrize("name", ["fmnist", "cifar10", "cifar100"])
def test_a_failed_download_is_one_line(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: object) -> None:
        raise URLError("no network")

    for source in (fmnist.FashionMNIST, CIFAR10):
        monkeypatch.setattr(source, "download", fail)
    with pytest.raises(InputError, match=f"could not (download|read) {name} (into|under) .*no network") as caught:
        load_dataset(name, tmp_path / "new", download=True)
    assert_one_line(caught.value)


@pytest.mark.parametrize(("source", "name", "classes"), [(CIFAR10, "cifar10", 10), (CIFAR100, "cifar100", 100)])
def test_cifar_reads_the_files_of_torchvision(
    source: type[CIFAR10], name: str, classes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    *train, test = write_cifar(tmp_path, source, classes, monkeypatch)
    dataset = load_dataset(name, tmp_path)
    assert dataset.shape == (3, 32, 32)
    assert dataset.classes == tuple(f"class {label}" for label in range(classes))
    assert np.array_equal(dataset.train.images.numpy().reshape(-1, 3072), np.concatenate(train))
    assert np.array_equal(dataset.test.images.numpy().reshape(-1, 3072), test)
    assert dataset.test.labels.tolist() == list(range(classes)) * 2
    limited = load_dataset(name, tmp_path, limit=classes)
    assert limited.train.labels.bincount().tolist() == [1] * classes


@pytest.mark.parametrize("file", ["train", "test", "meta"])
def test_damaged_cifar_files_are_refused(file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar(tmp_path, CIFAR100, 100, monkeypatch)
    _truncate(tmp_path / CIFAR100.base_folder / file)
    with pytest.raises(InputError, match="could not read cifar100 under .*not found or corrupted"):
        load_dataset("cifar100", tmp_path)


@pytest.mark.parametrize(("name", "folder"), [("cifar10", "cifar-10-batches-py"), ("cifar100", "cifar-100-python")])
def test_a_missing_cifar_says_where_it_looked_and_what_to_do(name: str, folder: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"{name} not found .*looked in .*{folder}.*--data-root PATH, or use --dow"):
        load_dataset(name, tmp_path)
    with pytest.raises(InputError, match=f"{name} not found"):
        load_dataset(name)


def test_unknown_names_and_misfit_arguments_are_refused(tmp_path: Path) -> None:
    assert datasets() == ("digits", "fmnist", "cifar10", "cifar100", "imagefolder")
    with pytest.raises(InputError, match="unknown data set 'cifar-10'; did you mean cifar10"):
        load_dataset("cifar-10")
    (tmp_path / "digit").mkdir()
    with pytest.raises(InputError, match=r"unknown data set .*digit'; .* --data imagefolder --data-root .*digit$"):
        load_dataset(str(tmp_path / "digit"))
    with pytest.raises(InputError, match="data root .*nowhere is not a folder"):
        load_dataset("cifar10", tmp_path / "nowhere")
    with pytest.raises(InputError, match="image_size .* for imagefolder only, found 16 for digits"):
        load_dataset("digits", image_size=16)
    with pytest.raises(InputError, match="image_size .* found 0 for imagefolder"):
        load_dataset("imagefolder", tmp_path, image_size=0)
    with pytest.raises(InputError, match="seed must be 0 or more, found -1"):
        load_dataset("digits", limit=20, seed=-1)
