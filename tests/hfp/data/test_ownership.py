"""Clients have the samples that a folder, a file or the caller says; what does not fit is refused in one line."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import hfp
from hfp.commands.cli import main
from hfp.data import Dataset, load_dataset
from hfp.data.ownership import checked_parts, parts_in_file, parts_of_owners, read_clients_file
from hfp.errors import InputError
from hfp.federation.setup import set_up

SMALL = {"model": "resnet8", "image_size": 8, "rounds": 1, "head_start": 1, "batch_size": 4}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def write(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8), value % 256, dtype=np.uint8)).save(path)


def write_clients(root: Path, clients: int = 11, each: int = 3, test: bool = True) -> None:
    """Write a tree whose images have their client's number as brightness; client 0 has no bees."""
    for client in range(clients):
        for name in ("ant", "bee")[: 1 if client == 0 else 2]:
            for index in range(each):
                write(root / f"client_{client}" / name / f"{index}.png", client)
    for name in ("ant", "bee") if test else ():
        write(root / "test" / name / "0.png", 99)


def brightness(federation) -> list[set[int]]:
    return [set(shard.images.flatten().tolist()) for shard in federation.shards]


@pytest.mark.parametrize("below", ["", "train"])
def test_folders_of_clients_stay_with_their_clients_in_the_order_of_their_numbers(tmp_path, below):
    write_clients(tmp_path / below, test=not below)
    if below:
        write(tmp_path / "test" / "ant" / "0.png", 99)
        write(tmp_path / "test" / "bee" / "0.png", 99)
    experiment = hfp.Experiment(dataset="imagefolder", data_root=str(tmp_path), clients=11, partition="own", **SMALL)
    federation = set_up(experiment)
    assert federation.dataset.classes == ("ant", "bee")
    assert brightness(federation) == [{client} for client in range(11)]
    assert [client.samples for client in federation.context.clients] == [3] + [6] * 10


def test_without_a_test_split_a_fifth_of_every_class_is_held_out_and_owners_stay(tmp_path):
    write_clients(tmp_path, clients=3, each=10, test=False)
    dataset = load_dataset("imagefolder", tmp_path, image_size=8)
    assert len(dataset.test) == 10
    assert dataset.owners is not None
    assert dataset.owners.tolist() == dataset.train.images[:, 0, 0, 0].tolist()


def test_folders_of_clients_that_are_dealt_out_anew_are_spoken_of(tmp_path):
    write_clients(tmp_path, clients=3)
    federation = set_up(hfp.Experiment(dataset="imagefolder", data_root=str(tmp_path), clients=2, alpha=100.0, **SMALL))
    assert "it belongs to 3 clients, and is dealt out anew without partition own" in federation.dataset.description


def test_classes_called_client_are_classes_where_they_hold_images(tmp_path):
    for name in ("client_a", "client_b"):
        for index in range(5):
            write(tmp_path / name / f"{index}.png", index)
    assert load_dataset("imagefolder", tmp_path).classes == ("client_a", "client_b")


def test_a_number_of_clients_that_the_folders_do_not_have_is_refused(tmp_path):
    write_clients(tmp_path, clients=3)
    with pytest.raises(InputError, match="clients must be 3, as many as data set imagefolder has; found 10"):
        set_up(hfp.Experiment(dataset="imagefolder", data_root=str(tmp_path), partition="own", **SMALL))
    with pytest.raises(InputError, match="data set digits says nothing of clients"):
        set_up(hfp.Experiment(partition="own"))


@pytest.fixture
def tree(tmp_path) -> Path:
    for label, name in enumerate(("ant", "bee")):
        for index in range(10):
            write(tmp_path / "tree" / name / f"{index}.png", 10 * label + index)
    return tmp_path / "tree"


def write_csv(path: Path, rows) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


def test_a_table_deals_files_out_and_leaves_test_images_alone(tree, tmp_path):
    rows = [(f"{name}/{index}.png", index % 2) for name in ("ant", "bee") for index in range(10)]
    file = write_csv(tmp_path / "who.csv", [("file", "client"), *rows])
    federation = set_up(
        hfp.Experiment(dataset="imagefolder", data_root=str(tree), clients=2, clients_file=str(file), **SMALL)
    )
    held_out = {int(value) for value in federation.dataset.test.images[:, 0, 0, 0]}
    odd = {value for value in range(20) if value % 2}
    assert brightness(federation) == [set(range(20)) - odd - held_out, odd - held_out]
    assert "4 images of" in federation.dataset.description


def test_names_of_files_in_a_table_may_hold_what_some_call_the_end_of_a_line(tmp_path):
    names = ["a\u2028b.png", "a\x85b.png", "a\x0bb.png", "a\nb.png"]
    file = write_csv(tmp_path / "who.csv", [("file", "client"), *((name, "one") for name in names)])
    assert read_clients_file(file) == {"one": names}


def test_the_command_takes_a_file_and_says_so(tree, tmp_path, capsys):
    lists = {"mine": [f"ant/{i}.png" for i in range(9)], "yours": [f"bee/{i}.png" for i in range(10)]}
    file = tmp_path / "who.json"
    file.write_text(json.dumps(lists))
    words = ["run", "--dataset", "imagefolder", "--data-root", str(tree), "--clients", "2", "--rounds", "1"]
    words += ["--head-start", "1", "--image-size", "8", "--batch-size", "4", "--clients-file", str(file)]
    assert main([*words, "--out", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().out
    assert f"(as {file} says)" in said
    assert main([*words, "--partition", "iid"]) == 2
    assert "clients_file says who has what; leave partition out; found 'iid' too" in capsys.readouterr().err


def test_indices_deal_out_any_data_set(tmp_path):
    file = tmp_path / "who.json"
    file.write_text(json.dumps([[5, 3], [0, 1, 2]]))
    federation = set_up(hfp.Experiment(clients=2, clients_file=file, batch_size=2))
    digits = load_dataset("digits")
    assert torch.equal(federation.shards[0].images, digits.train.images[[3, 5]])
    assert f"{len(digits.train) - 5:,} training samples belong to no client" in federation.dataset.description


@given(data=st.data())
def test_indices_in_either_kind_of_file_come_back(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    order = data.draw(st.permutations(range(12)))
    cut = data.draw(st.integers(2, 10))
    parts = {"a 1": order[:cut], "b": order[cut:]}
    rows = [("client", "index"), *((name, index) for name, part in parts.items() for index in part)]
    table, text = write_csv(folder / "who.csv", rows), folder / "who.json"
    text.write_text(json.dumps(parts))
    assert read_clients_file(table) == read_clients_file(text) == parts
    found = checked_parts(list(parts.values()), 12, "here")
    assert [part.tolist() for part in found] == [sorted(part) for part in parts.values()]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("w.csv", "ant/0.png,1\n", "must begin with the line file,client or index,client; found 'ant/0.png,1'"),
        ("w.csv", "index,client\n0,1\nx,1\n", "line 3: an index is a whole number from 0 on; found 'x'"),
        ("w.csv", "index,client\n0\n", "line 2, must be index,client; found '0'"),
        ("w.csv", f"index,client\n{10**20},1\n", "line 2: an index is a whole number from 0 on; found '1000"),
        ("w.csv", f"index,client\n{'9' * 5000},1\n", "line 2: an index is a whole number from 0 on; found '999"),
        ("w.csv", f"index,client\n{'0' * 200_000},1\n", "w.csv can't be read as CSV: field larger than"),
        ("w.json", f"[[0, {10**20}], [2, 3]]", "client 0 has sample 10{20}; the 1,438 training samples"),
        ("w.json", '{"a": [0, 1], "a": [2, 3], "b": [4, 5]}', "w.json lists the client 'a' more than once"),
        ("w.json", "{", "is neither CSV, by its name, nor JSON"),
        ("w.json", '{"a": 3}', "must hold a table of clients, each with a list of files or of indices"),
        ("w.json", '{"a": [1, true]}', "must hold a table of clients"),
        ("w.json", '[["x"], [1]]', "by files or by indices alone"),
        ("w.json", "[[0, 1]]", "clients must be 1, as many as"),
        ("w.json", "[[0, 1], [2, 1438]]", "client 1 has sample 1438; the 1,438 training samples are numbered from 0"),
        ("w.json", "[[0, 1], [-1, 3]]", "client 1 has sample -1"),
        ("w.json", "[[0, 1], [2]]", "client 1 has 1 training samples; it needs 2 at least"),
        ("w.json", "[[0, 1], [1, 2]]", "lists 1 sample more than once, such as 1; each has one client"),
        ("w.json", '[["a.png", "b.png"], ["c.png"]]', "names 3 files that data set digits does not have"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        set_up(hfp.Experiment(clients=2, clients_file=str(tmp_path / name)))
    with pytest.raises(InputError, match="can't be read: No such file"):
        read_clients_file(tmp_path / "none.csv")


def test_files_listed_for_two_clients_are_named(tree, tmp_path):
    dataset = load_dataset("imagefolder", tree, image_size=8)
    one, two, three = dataset.train.files[:3]
    file = write_csv(tmp_path / "w.csv", [("file", "client"), (one, 0), (two, 0), (two, 1), (three, 1)])
    with pytest.raises(InputError, match=f"lists 1 sample more than once, such as {two}"):
        parts_in_file(file, dataset, 2)


def test_lists_in_python_are_taken_and_checked():
    run = hfp.simulate(hfp.Experiment(partition=[range(40), range(60, 80)], clients=2, rounds=1, head_start=1))
    assert [client.samples for client in run.history[0].clients] == [40, 20]
    for changed, message in (
        ({"partition": [[0, 1]]}, "a list of indices for each of 2 clients; found 1"),
        ({"partition": [[0, 1], [2, 3]], "train_images": 40}, "train_images must be left out where partition names"),
        ({"clients_file": "w.csv", "train_images": 40}, "train_images must be left out where clients_file names"),
    ):
        with pytest.raises(InputError, match=message):
            hfp.Experiment(clients=2, **changed)
    with pytest.raises(InputError, match="the partition 2 lists was given in Python, and files don't keep it"):
        set_up(hfp.Experiment(**run.experiment.as_dict()))


def test_a_run_with_lists_goes_on_with_the_same_lists_and_no_others(tmp_path):
    experiment = hfp.Experiment(partition=[range(40), range(60, 80)], clients=2, rounds=1, head_start=1)
    hfp.simulate(experiment, resume=tmp_path)
    again = hfp.simulate(dataclasses.replace(experiment, rounds=2), resume=tmp_path)
    assert len(again.history) == 2
    other = dataclasses.replace(experiment, partition=[range(40), range(50, 70)], rounds=3)
    with pytest.raises(InputError, match="its clients or its test set had other data than today"):
        hfp.simulate(other, resume=tmp_path)


def test_owners_of_a_data_set_of_ones_own_are_used():
    digits = load_dataset("digits")
    owners = torch.arange(len(digits.train)) % 3
    mine: Dataset = dataclasses.replace(digits, owners=owners)
    found = parts_of_owners(mine.owners, 3, "digits")
    assert [part[:2].tolist() for part in found] == [[0, 3], [1, 4], [2, 5]]
    assert set_up(hfp.Experiment(dataset=mine, clients=3, partition="own")).context.clients[2].samples == len(found[2])


@pytest.mark.parametrize(
    ("owners", "message"), [([0, 0, 0, 1], "client 1 has 1 training"), ([0, 0, 2, 2], "client 1 has 0 training")]
)
def test_a_client_with_fewer_than_two_samples_of_its_own_is_refused(owners, message):
    with pytest.raises(InputError, match=f"data set mine: {message}"):
        parts_of_owners(torch.tensor(owners), max(owners) + 1, "mine")
