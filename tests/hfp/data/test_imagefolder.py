"""Image trees: splits, channels, crops, and a cache that is never wrong and never needed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hfp.data import Dataset, decode, load_dataset
from hfp.data.cifar import CIFAR10_CLASSES
from hfp.errors import InputError


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    return home / "hfp" / "images"


def pixels(seed: int, height: int = 8, width: int = 8, channels: int = 3) -> np.ndarray:
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(256, size=shape, dtype=np.uint8)


def write_image(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def write_tree(root: Path, classes: tuple[str, ...] = ("ant", "bee"), each: int = 5, channels: int = 3) -> None:
    for label, name in enumerate(classes):
        for index in range(each):
            write_image(root / name / f"{index}.png", pixels(100 * label + index, channels=channels))


def write_splits(root: Path, test: str = "test", **kinds: int) -> None:
    write_tree(root / "train", **kinds)
    write_tree(root / test, each=2, **kinds)


def images_of(dataset: Dataset) -> torch.Tensor:
    return torch.cat([dataset.train.images, dataset.test.images])


@pytest.mark.parametrize("test", ["test", "val"])
def test_a_tree_with_splits_arrives_pixel_for_pixel(tmp_path: Path, test: str) -> None:
    write_splits(tmp_path, test)
    dataset = load_dataset("imagefolder", tmp_path, image_size=8)
    assert dataset.classes == ("ant", "bee")
    assert dataset.shape == (3, 8, 8)
    assert dataset.train.labels.tolist() == [0] * 5 + [1] * 5
    assert dataset.test.labels.tolist() == [0, 0, 1, 1]
    for position, seed in enumerate([0, 1, 2, 3, 4, 100, 101, 102, 103, 104]):
        assert np.array_equal(dataset.train.images[position].permute(1, 2, 0).numpy(), pixels(seed))


def test_a_tree_without_splits_is_split_by_seed(tmp_path: Path) -> None:
    write_tree(tmp_path, each=10)
    datasets = [load_dataset("imagefolder", tmp_path, image_size=8, seed=seed) for seed in (0, 0, 1)]
    for dataset in datasets:
        assert dataset.train.labels.bincount().tolist() == [8, 8]
        assert dataset.test.labels.bincount().tolist() == [2, 2]
        assert len(images_of(dataset).unique(dim=0)) == 20
    assert torch.equal(datasets[0].test.images, datasets[1].test.images)
    assert not torch.equal(datasets[0].test.images, datasets[2].test.images)


def test_images_are_cut_about_the_centre(tmp_path: Path) -> None:
    write_splits(tmp_path)
    wide = pixels(7, height=8, width=16)
    write_image(tmp_path / "train/ant/0.png", wide)
    dataset = load_dataset("imagefolder", tmp_path, image_size=8)
    assert np.array_equal(dataset.train.images[0].permute(1, 2, 0).numpy(), wide[:, 4:12])


def test_other_sizes_are_resized_to_32_by_default(tmp_path: Path) -> None:
    write_splits(tmp_path)
    write_image(tmp_path / "train/ant/0.png", np.full((50, 90, 3), 200, dtype=np.uint8))
    dataset = load_dataset("imagefolder", tmp_path)
    assert dataset.shape == (3, 32, 32)
    assert torch.all(dataset.train.images[0] == 200)


def test_grey_trees_have_one_channel_and_mixed_ones_three(tmp_path: Path) -> None:
    write_splits(tmp_path, channels=1)
    assert load_dataset("imagefolder", tmp_path, image_size=8).shape == (1, 8, 8)
    write_image(tmp_path / "test/ant/0.png", pixels(5))
    mixed = load_dataset("imagefolder", tmp_path, image_size=8)
    assert mixed.shape == (3, 8, 8)
    assert mixed.test.images.shape == (4, 3, 8, 8)
    grey = mixed.train.images
    assert torch.equal(grey, grey[:, :1].expand(-1, 3, -1, -1))
    assert np.array_equal(grey[0, 0].numpy(), pixels(0, channels=1))


def test_a_limit_decodes_only_what_it_keeps(tmp_path: Path, cache: Path) -> None:
    write_tree(tmp_path / "train", each=20)
    write_tree(tmp_path / "test", each=2)
    dataset = load_dataset("imagefolder", tmp_path, image_size=8, limit=6)
    assert dataset.train.labels.bincount().tolist() == [3, 3]
    assert sorted(len(np.load(path)) for path in cache.iterdir()) == [4, 6]


def test_decoded_images_are_kept_and_taken_again(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("decoded again")

    write_splits(tmp_path)
    first = load_dataset("imagefolder", tmp_path)
    assert len(list(cache.iterdir())) == 2
    monkeypatch.setattr(decode, "_decode_all", refuse)
    assert torch.equal(images_of(load_dataset("imagefolder", tmp_path)), images_of(first))
    with pytest.raises(AssertionError, match="decoded again"):
        load_dataset("imagefolder", tmp_path, image_size=16)


def test_what_killed_processes_left_of_decoding_is_cleared_away(tmp_path: Path, cache: Path) -> None:
    write_splits(tmp_path)
    cache.mkdir(parents=True)
    old, fresh = cache / "old.part", cache / "fresh.part"
    for part in (old, fresh):
        part.write_bytes(b"half")
    os.utime(old, (0, 0))
    load_dataset("imagefolder", tmp_path)
    assert [path for path in (old, fresh) if path.exists()] == [fresh]


def test_arrays_of_several_sizes_are_kept_side_by_side(tmp_path: Path, cache: Path) -> None:
    write_splits(tmp_path)
    for size in (8, 16):
        load_dataset("imagefolder", tmp_path, image_size=size)
    assert len(list(cache.iterdir())) == 4


@pytest.mark.parametrize("size", [9_460, 10**12, 10**30])
def test_a_size_beyond_all_images_that_are_decoded_is_refused(tmp_path: Path, size: int) -> None:
    write_splits(tmp_path)
    with pytest.raises(InputError, match="image_size must be at most 9,459 pixels; found"):
        load_dataset("imagefolder", tmp_path, image_size=size)


def test_the_largest_size_is_that_of_pillow_s_limit() -> None:
    source = "from PIL import Image; from hfp.data.pixels import LARGEST_SIDE as side; "
    check = "assert side**2 <= Image.MAX_IMAGE_PIXELS < (side + 1) ** 2"
    subprocess.run([sys.executable, "-c", source + check], check=True)  # where no library has set another limit


def test_images_that_do_not_fit_into_memory_are_refused_in_one_line() -> None:
    with pytest.raises(InputError, match="1,000,000,000 images of 9459x9459 pixels do not fit into memory"):
        decode._in_memory(range(10**9), 9459)  # type: ignore[arg-type]


@pytest.mark.parametrize("change", ["content", "time"])
def test_a_changed_file_is_decoded_again(tmp_path: Path, change: str) -> None:
    write_splits(tmp_path)
    load_dataset("imagefolder", tmp_path, image_size=8)
    path = tmp_path / "train/ant/0.png"
    status = path.stat()
    write_image(path, pixels(999, height=9 if change == "content" else 8))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + (change == "time")))
    image = load_dataset("imagefolder", tmp_path, image_size=8).train.images[0]
    assert torch.equal(image, load_dataset("imagefolder", tmp_path, image_size=8, cache=False).train.images[0])


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 not an array", b"\x93NUMPY\x01\x00"])
def test_a_damaged_cache_is_replaced(tmp_path: Path, cache: Path, damage: bytes) -> None:
    write_splits(tmp_path)
    first = load_dataset("imagefolder", tmp_path)
    intact = {path: path.read_bytes() for path in cache.iterdir()}
    for path in intact:
        path.write_bytes(damage)
    assert torch.equal(images_of(load_dataset("imagefolder", tmp_path)), images_of(first))
    assert {path: path.read_bytes() for path in cache.iterdir()} == intact


def test_a_cached_array_of_another_shape_is_replaced(tmp_path: Path, cache: Path) -> None:
    write_splits(tmp_path)
    first = load_dataset("imagefolder", tmp_path)
    for path in cache.iterdir():
        np.save(path, np.zeros((3, 3, 32, 32), dtype=np.uint8))
    assert torch.equal(images_of(load_dataset("imagefolder", tmp_path)), images_of(first))


def test_the_cache_can_be_turned_off(tmp_path: Path, cache: Path) -> None:
    write_splits(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    load_dataset("imagefolder", tmp_path, cache=False)
    assert not cache.exists()
    load_dataset("imagefolder", tmp_path)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_cache_that_can_not_be_written_is_only_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_splits(tmp_path / "images")
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="decoded images are not cached in"):
        dataset = load_dataset("imagefolder", tmp_path / "images")
    assert len(dataset.train) == 10


def test_a_failed_write_leaves_no_part_behind(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError("no space left on device")

    write_splits(tmp_path)
    monkeypatch.setattr(decode, "_write", full)
    with pytest.warns(UserWarning, match="no space left on device"):
        load_dataset("imagefolder", tmp_path)
    assert list(cache.iterdir()) == []


def test_a_damaged_image_is_named(tmp_path: Path) -> None:
    write_splits(tmp_path)
    path = tmp_path / "train/bee/3.png"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(InputError, match=r"can't decode image .*train/bee/3.png: .*remove or replace it"):
        load_dataset("imagefolder", tmp_path)


def test_trees_that_can_not_be_used_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="imagefolder needs the folder of the images: --data-root PATH"):
        load_dataset("imagefolder")
    with pytest.raises(InputError, match="is not a tree of images with one folder per class: .*find any class folder"):
        load_dataset("imagefolder", tmp_path)
    write_tree(tmp_path / "train", ("ant", "bee"))
    write_tree(tmp_path / "test", ("ant", "wasp"))
    with pytest.raises(InputError, match="hold different classes; only one has bee, wasp"):
        load_dataset("imagefolder", tmp_path)
    (tmp_path / "test" / "bee").mkdir()
    with pytest.raises(InputError, match="Found no valid file for the classes bee"):
        load_dataset("imagefolder", tmp_path)


def test_a_class_of_one_image_can_not_be_split(tmp_path: Path) -> None:
    write_tree(tmp_path, each=3)
    write_image(tmp_path / "cicada/0.png", pixels(0))
    with pytest.raises(InputError, match="class cicada .* has one image"):
        load_dataset("imagefolder", tmp_path)


def test_cifar10_may_be_a_tree_of_its_classes(tmp_path: Path) -> None:
    write_splits(tmp_path / "right", classes=CIFAR10_CLASSES)
    dataset = load_dataset("cifar10", tmp_path / "right")
    assert dataset.name == "cifar10"
    assert dataset.shape == (3, 32, 32)
    assert dataset.test.labels.bincount().tolist() == [2] * 10
    write_splits(tmp_path / "wrong")
    with pytest.raises(InputError, match="holds other classes than CIFAR-10: ant, bee"):
        load_dataset("cifar10", tmp_path / "wrong")
