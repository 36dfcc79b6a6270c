"""Image trees as people have them: names of splits, roots a level too high, links, and what is no image."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hfp.data import Dataset, load_dataset
from hfp.errors import InputError

CLASSES = ("ant", "bee")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def write(path: Path, value: int = 7) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8, 3), value, dtype=np.uint8)).save(path)
    return path


def write_classes(folder: Path, classes: tuple[str, ...] = CLASSES, each: int = 5) -> Path:
    for label, name in enumerate(classes):
        for index in range(each):
            write(folder / name / f"{index}.png", 10 * label + index)
    return folder


def loaded(root: Path) -> Dataset:
    return load_dataset("imagefolder", root, image_size=8)


def refused(root: Path) -> str:
    with pytest.raises(InputError) as caught:
        loaded(root)
    message = str(caught.value)
    assert message.isprintable(), "one line, without control characters or escapes of bytes"
    return message


@pytest.mark.parametrize("train", ["train", "training", "Training", "TRAIN"])
@pytest.mark.parametrize("test", ["test", "Testing", "valid", "validation", "val", "dev", "eval", "Val"])
def test_splits_are_known_by_their_usual_names(tmp_path: Path, train: str, test: str) -> None:
    write_classes(tmp_path / train)
    write_classes(tmp_path / test, each=2)
    data = loaded(tmp_path)
    assert data.classes == CLASSES
    assert (len(data.train), len(data.test)) == (10, 4)
    assert data.notes == ()


def test_a_test_split_goes_before_a_validation_split_and_what_is_not_used_is_said(tmp_path: Path) -> None:
    write_classes(tmp_path / "train")
    write_classes(tmp_path / "test", each=2)
    write_classes(tmp_path / "val", each=3)
    write_classes(tmp_path / "extra", each=4)
    data = loaded(tmp_path)
    assert len(data.test) == 4
    assert data.notes == (f"not used: extra, val of {tmp_path}",)


@pytest.mark.parametrize("only", ["train", "Training", "valid", "test"])
def test_of_one_split_alone_a_part_is_held_out_and_that_is_said(tmp_path: Path, only: str) -> None:
    write_classes(tmp_path / only, each=10)
    data = loaded(tmp_path)
    assert data.classes == CLASSES
    assert data.train.labels.bincount().tolist() == [8, 8]
    assert data.test.labels.bincount().tolist() == [2, 2]
    assert "no test split found: 20% of every class is held out, drawn by seed 0" in data.description


def test_a_tree_without_splits_says_that_a_part_is_held_out(tmp_path: Path) -> None:
    assert "20% of every class is held out" in loaded(write_classes(tmp_path)).description


@pytest.mark.parametrize("levels", ["data", "a/b"])
def test_a_root_above_the_splits_is_found_and_said(tmp_path: Path, levels: str) -> None:
    write_classes(tmp_path / levels / "train")
    write_classes(tmp_path / levels / "test", each=2)
    data = loaded(tmp_path)
    assert (data.classes, len(data.test)) == (CLASSES, 4)
    assert data.notes == (f"the images are those of {tmp_path / levels}",)


def test_a_root_above_the_classes_is_found_and_said(tmp_path: Path) -> None:
    write_classes(tmp_path / "data")
    data = loaded(tmp_path)
    assert data.classes == CLASSES
    assert data.notes[0] == f"the images are those of {tmp_path / 'data'}"


def test_a_root_above_several_data_sets_names_them(tmp_path: Path) -> None:
    for name in ("first", "second"):
        write_classes(tmp_path / name / "train")
    message = refused(tmp_path)
    assert f"{tmp_path / 'first'}, {tmp_path / 'second'} hold splits: give one of them with --data-root" in message


def test_one_data_set_beside_other_folders_is_named(tmp_path: Path) -> None:
    write_classes(tmp_path / "images" / "train")
    write(tmp_path / "documents" / "plan.png")
    assert f"{tmp_path / 'images'} holds splits: give it with --data-root" in refused(tmp_path)


@pytest.mark.parametrize(
    ("below", "outer"),
    [("", ("checking", "learning")), ("", ("berlin", "paris", "rome")), ("train", ("berlin", "paris"))],
)
def test_folders_that_hold_the_same_folders_are_never_classes(
    tmp_path: Path, below: str, outer: tuple[str, ...]
) -> None:
    for name in outer:
        write_classes(tmp_path / below / name)
    message = refused(tmp_path)
    assert f"{tmp_path / below} has {', '.join(outer)}, which hold the same folders ant, bee" in message
    assert "call splits train and test, call clients client_1" in message


def test_classes_may_hold_folders_of_one_name_or_of_different_names(tmp_path: Path) -> None:
    for name in CLASSES:
        write_classes(tmp_path / name, ("images", f"more of {name}"))
    assert loaded(tmp_path).classes == CLASSES


@pytest.mark.parametrize("folders", [("bus", "car", "train"), ("train", "test"), ("invalid", "valid"), ("dev", "prod")])
def test_folders_called_as_splits_are_never_classes(tmp_path: Path, folders: tuple[str, ...]) -> None:
    assert "a class must not have the name of a split" in refused(write_classes(tmp_path, folders))


def test_splits_inside_of_a_split_are_no_classes(tmp_path: Path) -> None:
    for split in ("train", "val"):
        write_classes(tmp_path / "train" / split)
    assert f"{tmp_path / 'train'} holds train, val, which are splits and not classes" in refused(tmp_path)


def test_inside_a_split_a_class_may_be_called_train(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write_classes(tmp_path / split, ("bus", "train"))
    assert loaded(tmp_path).classes == ("bus", "train")


def test_two_folders_of_one_split_are_refused(tmp_path: Path) -> None:
    for name in ("train", "val", "validation"):
        write_classes(tmp_path / name)
    assert "has several folders of the validation split: val, validation; keep one" in refused(tmp_path)


def test_test_and_validation_without_training_are_refused(tmp_path: Path) -> None:
    for name in ("test", "val"):
        write_classes(tmp_path / name)
    assert "has test, val, but no folder train" in refused(tmp_path)


def test_one_class_is_refused(tmp_path: Path) -> None:
    write_classes(tmp_path / "flat", ("ant",))
    assert "has the class ant alone; two or more are needed" in refused(tmp_path / "flat")
    for split in ("train", "test"):
        write_classes(tmp_path / "split" / split, ("ant",))
    assert "has the class ant alone; two or more are needed" in refused(tmp_path / "split")


def test_a_class_that_training_does_not_have_is_named(tmp_path: Path) -> None:
    write_classes(tmp_path / "train")
    write_classes(tmp_path / "test", (*CLASSES, "wasp"))
    assert "hold different classes; only one has wasp" in refused(tmp_path)


def test_hidden_files_and_folders_are_left_out_and_said(tmp_path: Path) -> None:
    write_classes(tmp_path)
    write(tmp_path / ".checkpoints" / "a.png")
    write(tmp_path / "ant" / ".trash" / "a.png")
    write(tmp_path / "ant" / "._0.png")
    (tmp_path / "bee" / "notes.txt").write_text("sting")
    data = loaded(tmp_path)
    assert data.classes == CLASSES
    assert len(data.train) + len(data.test) == 10
    assert data.notes[-1] == "files left out: 1 .txt, 3 hidden"


def test_links_to_images_elsewhere_are_followed(tmp_path: Path) -> None:
    write_classes(tmp_path / "store")
    (tmp_path / "root").mkdir()
    for name in CLASSES:
        (tmp_path / "root" / name).symlink_to(tmp_path / "store" / name)
    write(tmp_path / "one.png")
    (tmp_path / "store" / "ant" / "x.png").symlink_to(tmp_path / "one.png")
    data = loaded(tmp_path / "root")
    assert len(data.train) + len(data.test) == 11


@pytest.mark.parametrize("target", ["..", "../..", "../bee", "/"])
def test_links_by_which_a_folder_would_count_twice_are_refused(tmp_path: Path, target: str) -> None:
    root = write_classes(tmp_path / "root")
    (root / "ant" / "loop").symlink_to(target)
    assert "once more, through a link; its images would count twice" in refused(root)


def test_links_to_nothing_and_pipes_are_named_together(tmp_path: Path) -> None:
    write_classes(tmp_path)
    (tmp_path / "ant" / "lost.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "ant" / "self.png").symlink_to("self.png")
    os.mkfifo(tmp_path / "bee" / "pipe.png")
    message = refused(tmp_path)
    assert message.startswith("3 files below ")
    for words in (
        "lost.png can't be read: No such file",
        "self.png can't be read: Too many lev",
        "pipe.png is not a file",
    ):
        assert words in message


def test_a_link_to_itself_beside_the_classes_is_no_class(tmp_path: Path) -> None:
    write_classes(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    assert loaded(tmp_path).classes == CLASSES


def test_file_names_may_be_any_bytes_and_class_names_may_not(tmp_path: Path) -> None:
    write_classes(tmp_path)
    odd = os.fsencode(tmp_path / "ant") + b"/\xff.png"
    os.rename(tmp_path / "ant" / "0.png", odd)
    assert len(loaded(tmp_path).train) == 8
    Path(os.fsdecode(odd)).write_bytes(b"no image")
    assert r"can't decode image" in refused(tmp_path)
    assert r"\xff.png" in refused(tmp_path)
    os.rename(tmp_path / "bee", os.fsencode(tmp_path) + b"/b\xe9e\n")
    assert r"rename b\xe9e\n" in refused(tmp_path)


def test_a_folder_that_can_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.scandir

    def denied(path: str) -> object:
        if str(path).endswith("bee"):
            raise PermissionError(13, "Permission denied")
        return real(path)

    write_classes(tmp_path)
    monkeypatch.setattr(os, "scandir", denied)
    assert refused(tmp_path).endswith("bee can't be read: Permission denied")


def test_files_come_in_the_order_of_their_folders_and_names(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for place, value in (("b.png", 1), ("sub/a.png", 2), ("a.png", 0), ("sub-2/z.png", 3)):
            write(tmp_path / split / "ant" / place, value)
        write(tmp_path / split / "bee" / "a.png", 4)
    values = loaded(tmp_path).train.images[:, 0, 0, 0]
    assert torch.equal(values, torch.tensor([0, 1, 2, 3, 4], dtype=torch.uint8))
