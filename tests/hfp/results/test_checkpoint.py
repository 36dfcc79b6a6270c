"""A run taken up from a checkpoint is the run that was never interrupted; what isn't a checkpoint is refused."""

import dataclasses
import json
import math
import re
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from hfp import Experiment, InputError
from hfp.data.dataset import Split
from hfp.federation.rounds import Course
from hfp.federation.setup import set_up
from hfp.results.checkpoint import Checkpoint, fingerprint, load_checkpoint, save_checkpoint
from hfp.results.files import CHECKPOINT, PREVIOUS
from hfp.results.tensor_file import read, to_bytes

QUICK = {"train_images": 60, "clients": 3, "rounds": 4, "evaluate": 9, "batch_norm": "aggregate"}


@pytest.fixture
def checkpoint(tmp_path):
    experiment = Experiment(method="fedavg", head_start=1.0, **{**QUICK, "rounds": 1})
    course = Course(set_up(experiment))
    course.advance()
    saved = Checkpoint(experiment, course.run_state)
    save_checkpoint(tmp_path, saved)
    return tmp_path / CHECKPOINT, saved


def test_a_checkpoint_has_what_was_saved(tmp_path, checkpoint):
    _, saved = checkpoint
    found = load_checkpoint(tmp_path)
    assert (found.experiment, found.history) == (saved.experiment, saved.history)


def test_what_is_no_checkpoint_is_refused(tmp_path, checkpoint):
    path, _ = checkpoint
    with pytest.raises(InputError, match="there is no checkpoint"):
        load_checkpoint(tmp_path / "missing")
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(InputError, match="is damaged"):
        load_checkpoint(tmp_path)
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(InputError, match="is no checkpoint of version 3; it says None"):
        load_checkpoint(tmp_path)
    path.write_bytes(to_bytes({}, {"hfp_checkpoint": "1", "tree": "{}"}))
    with pytest.raises(InputError, match="is no checkpoint of version 3; it says '1'"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "tree",
    [
        ["made", "os", "stat_result", {}],
        ["made", "subprocess", "Popen", {"args": "true"}],
        ["made", "hfp.results.folder", "RunFolder", {"path": "x"}],
        ["unknown", []],
        ["tensor", "77"],
        {},
        [],
        ["made", "hfp.federation.rounds", "RunState", {}],
    ],
)
def test_files_make_nothing_but_dataclasses_of_ours(tmp_path, tree):
    metadata = {"hfp_checkpoint": "3", "tree": json.dumps(tree)}
    save_file({"0": torch.zeros(1)}, tmp_path / CHECKPOINT, metadata)
    with pytest.raises(InputError, match="is damaged"):
        load_checkpoint(tmp_path)


def test_a_deeply_nested_tree_is_damage_and_no_crash(tmp_path):
    metadata = {"hfp_checkpoint": "3", "tree": "[" * 100_000 + "]" * 100_000}
    save_file({"0": torch.zeros(1)}, tmp_path / CHECKPOINT, metadata)
    with pytest.raises(InputError, match="is damaged: RecursionError"):
        load_checkpoint(tmp_path)


def test_a_checkpoint_is_written_whole_or_not_at_all(tmp_path, checkpoint):
    path, saved = checkpoint
    before = path.read_bytes()
    strange = dataclasses.replace(saved.run_state.state, method_state=object())
    with pytest.raises(InputError, match="a object can't be written to a checkpoint"):
        save_checkpoint(tmp_path, Checkpoint(saved.experiment, dataclasses.replace(saved.run_state, state=strange)))
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == [CHECKPOINT]


def test_the_two_newest_checkpoints_are_kept(tmp_path, checkpoint):
    path, saved = checkpoint
    first = path.read_bytes()
    for name in "ab":
        save_checkpoint(tmp_path, dataclasses.replace(saved, data=name))
    assert {entry.name for entry in tmp_path.iterdir()} == {CHECKPOINT, PREVIOUS}
    assert (load_checkpoint(tmp_path).data, first != path.read_bytes()) == ("b", True)
    path.unlink()
    assert load_checkpoint(tmp_path).data == "a"


@pytest.mark.parametrize("place", [0.001, 0.2, 0.5, 0.999])
def test_one_damaged_byte_is_noticed_and_the_checkpoint_before_is_used_and_said(tmp_path, checkpoint, place):
    path, saved = checkpoint
    save_checkpoint(tmp_path, dataclasses.replace(saved, data="newer"))
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 1
    path.write_bytes(content)
    said = []
    assert load_checkpoint(tmp_path, said.append).data == ""
    assert re.search(f"{CHECKPOINT} .*the one before it, of round 1, is used", said[0])


@pytest.mark.slow
def test_the_same_checkpoint_has_the_same_bytes_in_every_process(tmp_path, checkpoint):
    path, _ = checkpoint
    code = (
        "import sys, pathlib; from hfp.results.checkpoint import *; "
        "folder = pathlib.Path(sys.argv[1]); save_checkpoint(folder, load_checkpoint(folder))"
    )
    before = path.read_bytes()
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    assert path.read_bytes() == before


def test_numbers_that_are_not_finite_survive_without_leaving_json(tmp_path, checkpoint):
    path, saved = checkpoint
    record = dataclasses.replace(saved.history[0], loss=math.inf, accuracy=math.nan)
    save_checkpoint(tmp_path, Checkpoint(saved.experiment, dataclasses.replace(saved.run_state, history=(record,))))
    found = load_checkpoint(tmp_path).history[0]
    assert found.loss == math.inf and math.isnan(found.accuracy)
    tree = read(path)[0]["tree"]
    json.loads(tree, parse_constant=pytest.fail)


def test_a_run_is_resumed_with_its_own_experiment_data_and_model_alone(checkpoint):
    _, saved = checkpoint
    federation = set_up(saved.experiment)
    saved = dataclasses.replace(saved, data=fingerprint(federation))
    saved.check(dataclasses.replace(saved.experiment, rounds=9, data_root="elsewhere"), federation)
    with pytest.raises(InputError, match=r"of another experiment: it has batch_size 32 and not 8, seed 0 and not 1"):
        saved.check(dataclasses.replace(saved.experiment, seed=1, batch_size=8))
    with pytest.raises(InputError, match="its clients or its test set had other data"):
        saved.check(saved.experiment, set_up(dataclasses.replace(saved.experiment, seed=1)))
    test, classes = federation.dataset.test, federation.dataset.classes
    for other in (
        {"test": Split(test.images, test.labels.flip(0))},
        {"test": Split(test.images.flip(0), test.labels)},
        {"classes": (*classes[1:], classes[0])},
    ):
        changed = dataclasses.replace(federation, dataset=dataclasses.replace(federation.dataset, **other))
        with pytest.raises(InputError, match="its clients or its test set had other data"):
            saved.check(saved.experiment, changed)
    with pytest.raises(InputError, match="its model has tensors of other names or shapes"):
        saved.check(saved.experiment, set_up(dataclasses.replace(saved.experiment, model="vgg-small")))
