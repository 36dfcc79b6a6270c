"""Image files of every kind: what becomes of modes, depths, rotations and animations, and which are refused."""

from __future__ import annotations

import subprocess
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, UnidentifiedImageError

from hfp.data import Dataset, decode, load_dataset, rows
from hfp.errors import InputError

GREY = np.random.default_rng(0).integers(256, size=(8, 8), dtype=np.uint8)
COLOUR = np.random.default_rng(1).integers(256, size=(8, 8, 3), dtype=np.uint8)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    return home / "hfp" / "images"


def tree(root: Path, image: Image.Image, name: str = "0.png", **options: object) -> Dataset:
    """A data set all of whose images are this one, decoded, and the same again from the cache."""
    for split in ("train", "test"):
        for label in ("ant", "bee"):
            (root / split / label).mkdir(parents=True, exist_ok=True)
            image.save(root / split / label / name, **options)
    data, again = (load_dataset("imagefolder", root, image_size=8) for _ in range(2))
    assert np.array_equal(data.train.images.numpy(), again.train.images.numpy())
    assert data.notes == again.notes
    return data


def test_a_colour_channel_called_a_is_no_transparency(tmp_path: Path) -> None:
    assert tree(tmp_path, Image.new("LAB", (8, 8)), "0.tif").notes == ()


def first(data: Dataset) -> np.ndarray:
    return data.train.images[0].permute(1, 2, 0).numpy()


def test_16_bit_images_are_scaled_and_that_is_said(tmp_path: Path) -> None:
    data = tree(tmp_path, Image.fromarray(GREY.astype(np.uint16) * 257))
    assert data.shape == (1, 8, 8)
    assert np.array_equal(first(data)[:, :, 0], GREY)
    assert data.notes == ("4 images of more than 8 bits are scaled to 8",)


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_floats_from_0_to_1_and_whole_numbers_up_to_65535_are_scaled(tmp_path: Path, kind: type) -> None:
    values = GREY / 255 if kind is np.float32 else GREY.astype(np.int64) * 257
    data = tree(tmp_path, Image.fromarray(values.astype(kind)), "0.tif")
    assert np.array_equal(first(data)[:, :, 0], GREY)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (GREY.astype(np.float32), "floating-point numbers from .* expected 0 to 1"),
        (GREY / np.float32(255) - 0.1, "floating-point numbers from -0.0843137 to 0.872549"),
        (np.where(GREY[0, 0] == GREY, np.nan, 0.5).astype(np.float32), "floating-point numbers from nan to nan"),
        (GREY.astype(np.int32) * 1000, "whole numbers from .* expected 0 to 65535"),
    ],
)
def test_values_of_an_unknown_range_are_refused(tmp_path: Path, values: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        tree(tmp_path, Image.fromarray(values), "0.tif")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_as_their_exif_says(tmp_path: Path, orientation: int) -> None:
    upright = {
        1: COLOUR,
        2: COLOUR[:, ::-1],
        3: COLOUR[::-1, ::-1],
        4: COLOUR[::-1],
        5: COLOUR.transpose(1, 0, 2),
        6: COLOUR.transpose(1, 0, 2)[:, ::-1],
        7: COLOUR.transpose(1, 0, 2)[::-1, ::-1],
        8: COLOUR.transpose(1, 0, 2)[::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(first(tree(tmp_path, Image.fromarray(COLOUR), exif=exif)), upright)


@pytest.mark.parametrize("exif", [b"Exif\0\0no TIFF at all", b"Exif\0\0II*\0\x08\0\0\0\xff\xff", b"Exif\0\0"])
def test_images_whose_exif_is_damaged_are_read_as_they_lie(tmp_path: Path, exif: bytes) -> None:
    image = Image.fromarray(COLOUR)
    damaged = tree(tmp_path / "damaged", image, "0.jpg", exif=exif)
    assert np.array_equal(first(damaged), first(tree(tmp_path / "sound", image, "0.jpg")))


def test_of_animated_images_the_first_is_taken_and_that_is_said(tmp_path: Path) -> None:
    frames = [Image.fromarray(np.full((8, 8), value, dtype=np.uint8)) for value in (200, 20, 90)]
    data = tree(tmp_path, frames[0], "0.gif", save_all=True, append_images=frames[1:])
    assert np.all(first(data) == 200)
    assert data.notes == ("4 animated images or files of several pages count with the first",)


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_transparency_is_dropped_and_that_is_said(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(GREY if mode == "LA" else COLOUR)
    image.putalpha(128)
    data = tree(tmp_path, image)
    assert np.array_equal(first(data), GREY[:, :, None] if mode == "LA" else COLOUR)
    assert data.notes == ("4 images lose their transparency",)
    image.putalpha(255)
    assert tree(tmp_path / "opaque", image).notes == ()


def test_palettes_and_cmyk_become_rgb(tmp_path: Path) -> None:
    palette = Image.fromarray(COLOUR).quantize(64)
    assert np.array_equal(first(tree(tmp_path / "p", palette)), np.asarray(palette.convert("RGB")))
    cmyk = Image.fromarray(COLOUR).convert("CMYK")
    assert np.array_equal(first(tree(tmp_path / "c", cmyk, "0.tif")), COLOUR)


def test_a_palette_with_transparency_is_read_without_a_warning(tmp_path: Path) -> None:
    palette = Image.fromarray(COLOUR).quantize(64)
    data = tree(tmp_path, palette, transparency=bytes([0] * 64))
    assert data.notes == ("4 images lose their transparency",)


def test_black_and_white_is_grey(tmp_path: Path) -> None:
    data = tree(tmp_path, Image.fromarray(GREY > 100))
    assert np.array_equal(first(data)[:, :, 0], np.where(GREY > 100, 255, 0))


def test_all_damaged_images_are_named_at_once(tmp_path: Path, cache: Path) -> None:
    image = Image.fromarray(COLOUR)
    tree(tmp_path, image)
    damaged = [tmp_path / "train/ant/0.png", tmp_path / "test/bee/0.png", tmp_path / "train/bee/0.png"]
    for path in damaged:
        path.write_bytes(path.read_bytes()[:70])
    kept = set(cache.iterdir())
    with pytest.raises(InputError, match="can't decode 3 of 4 images: .*; remove or replace them") as caught:
        load_dataset("imagefolder", tmp_path, image_size=8)
    assert all(str(path) in str(caught.value) for path in damaged)
    assert "\n" not in str(caught.value)
    assert set(cache.iterdir()) == kept


def test_only_known_formats_are_opened_whatever_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def started(*_: object, **__: object) -> None:
        raise AssertionError("a program was started")

    tree(tmp_path, Image.fromarray(COLOUR))
    (tmp_path / "train/ant/0.png").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"
    )
    monkeypatch.setattr(subprocess, "Popen", started)
    with pytest.raises(InputError, match=r"0.png: none of the known formats \(BMP, GIF, JPEG, PNG, PPM, TIFF, WEBP\)"):
        load_dataset("imagefolder", tmp_path, image_size=8)


def test_a_library_that_replaces_how_images_are_opened_changes_no_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Image.open

    def replaced(*given: object, **options: object) -> object:
        try:
            return opened(*given, **options)
        except UnidentifiedImageError:
            raise ModuleNotFoundError("No module named 'another_decoder'")  # noqa: B904

    tree(tmp_path, Image.fromarray(COLOUR))
    (tmp_path / "train/ant/0.png").write_bytes(b"no image")
    monkeypatch.setattr(Image, "open", replaced)
    with pytest.raises(InputError, match=r"0.png: none of the known formats"):
        load_dataset("imagefolder", tmp_path, image_size=8)


@pytest.mark.parametrize("limit", [40, 20])
def test_images_of_too_many_pixels_are_refused(tmp_path: Path, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow warns beyond its limit, and refuses beyond twice as much; 8x8 pixels are in between, and above."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(InputError, match=rf"more pixels than are decoded \({limit}\); make it smaller"):
        tree(tmp_path, Image.fromarray(COLOUR))


def test_large_arrays_are_mapped_from_the_cache_and_are_the_same(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for split in ("train", "test"):
        for index in range(12):
            path = tmp_path / split / ("ant", "bee")[index % 2] / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(GREY + np.uint8(index) if split == "test" else COLOUR + np.uint8(index)).save(path)
    plain = load_dataset("imagefolder", tmp_path, image_size=8, cache=False)
    monkeypatch.setattr(rows, "LARGE_BYTES", 0)
    monkeypatch.setattr(decode, "_CHUNK_BYTES", 5 * 3 * 8 * 8)
    for _ in range(2):
        mapped = load_dataset("imagefolder", tmp_path, image_size=8)
        for one, other in ((plain.train, mapped.train), (plain.test, mapped.test)):
            assert np.array_equal(one.images.numpy(), other.images.numpy())
            assert np.array_equal(one.labels.numpy(), other.labels.numpy())
        assert np.array_equal(plain.mean.numpy(), mapped.mean.numpy())
        assert "/hfp/images/" in Path("/proc/self/maps").read_text()
        mapped.train.images[0] = 0  # is nobody's but this data set's
    assert len(list(cache.iterdir())) == 2


def anonymous_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc to see what memory is used")
def test_a_data_set_that_is_mapped_takes_no_memory_of_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    side, each = 256, 150
    picture = decode.DecodedImage(np.full((side, side, 3), 9, dtype=np.uint8), False, frozenset())
    monkeypatch.setattr(decode, "_try", lambda path, size: picture)
    monkeypatch.setattr(rows, "LARGE_BYTES", 0)
    held, used = [], []
    for name in ("first", "second", "third"):  # the least counts: libraries and the allocator take memory now and then
        for split, label, index in product(("train", "test"), ("ant", "bee"), range(each)):
            path = tmp_path / name / split / label / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"")
        before = anonymous_bytes()
        held.append(load_dataset("imagefolder", tmp_path / name, image_size=side))
        used.append(anonymous_bytes() - before)
    size = held[0].train.images.nbytes + held[0].test.images.nbytes
    assert size == 4 * each * 3 * side * side
    assert min(used) < size / 2
    assert int(held[0].test.images[-1].max()) == 9
