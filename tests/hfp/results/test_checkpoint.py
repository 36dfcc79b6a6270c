"""A run taken up from a checkpoint is the run that was never interrupted; what isn't a checkpoint is refused."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import save_file

from hfp import Experiment, InputError
from hfp.federation.rounds import Course
from hfp.federation.setup import set_up
from hfp.results.checkpoint import CHECKPOINT, Checkpoint, load_checkpoint, save_checkpoint

QUICK = {"train_images": 60, "clients": 3, "rounds": 4, "evaluate": 9, "batch_norm": "aggregate"}
RUNS = {
    "ca-hfp": {"options": {"warmup": 1, "estimator": "secant"}, "diagnostics": True},
    "fedmp": {"options": {"bandit": True}, "replan": 2},
    "prunefl": {"options": {"passes": 1, "limit": 1, "every": 2}},
    "fjord": {"options": {"widths": [0.5, 1.0]}},
    "heterofl": {"profile": ("laptop", "board"), "deadline": 0.05, "late": "join"},
}


def figures(record):
    return dataclasses.replace(record, seconds=0.0)


@pytest.mark.parametrize("method", RUNS)
def test_a_run_goes_on_as_if_it_had_not_been_interrupted(method, tmp_path):
    experiment = Experiment(method=method, **{**QUICK, **RUNS[method]})
    federation = set_up(experiment)
    whole = Course(federation)
    outcomes = [whole.advance() for _ in range(4)]
    part = Course(federation)
    history = tuple(part.advance().record for _ in range(2))
    save_checkpoint(tmp_path / CHECKPOINT, Checkpoint(experiment, history, part.run_state))
    again = load_checkpoint(tmp_path / CHECKPOINT)
    assert again.experiment == experiment
    assert again.history == history
    rest = Course(set_up(experiment), run_state=again.run_state)
    records = [*again.history, *(rest.advance().record for _ in range(2))]
    assert [figures(record) for record in records] == [figures(outcome.record) for outcome in outcomes]
    if method == "heterofl":
        assert any(client.status == "late" for record in history for client in record.clients)
    for name, tensor in whole.state.weights.items():
        assert torch.equal(rest.state.weights[name], tensor)


@pytest.fixture
def checkpoint(tmp_path):
    experiment = Experiment(method="fedavg", **{**QUICK, "rounds": 1})
    course = Course(set_up(experiment))
    saved = Checkpoint(experiment, (course.advance().record,), course.run_state)
    save_checkpoint(tmp_path / CHECKPOINT, saved)
    return tmp_path / CHECKPOINT, saved


def test_what_is_no_checkpoint_is_refused(tmp_path, checkpoint):
    path, _ = checkpoint
    with pytest.raises(InputError, match="there is no checkpoint"):
        load_checkpoint(tmp_path / "missing")
    (tmp_path / "short").write_bytes(path.read_bytes()[:-10])
    with pytest.raises(InputError, match="can't be read"):
        load_checkpoint(tmp_path / "short")
    save_file({"a": torch.zeros(1)}, tmp_path / "other")
    with pytest.raises(InputError, match="is no checkpoint of version 1"):
        load_checkpoint(tmp_path / "other")


@pytest.mark.parametrize(
    "tree",
    [
        ["made", "os", "stat_result", {}],
        ["made", "subprocess", "Popen", {"args": "true"}],
        ["made", "hfp.results.folder", "RunFolder", {"path": "x"}],
        ["unknown", []],
        ["tensor", "77"],
        {},
    ],
)
def test_files_make_nothing_but_dataclasses_of_ours(tmp_path, tree):
    metadata = {"hfp_checkpoint": "1", "tree": json.dumps(tree)}
    save_file({"0": torch.zeros(1)}, tmp_path / "crafted", metadata)
    with pytest.raises(InputError, match="is damaged"):
        load_checkpoint(tmp_path / "crafted")


def test_a_checkpoint_is_written_whole_or_not_at_all(tmp_path, checkpoint):
    path, saved = checkpoint
    before = path.read_bytes()
    strange = dataclasses.replace(saved.run_state.state, method_state=object())
    with pytest.raises(InputError, match="a object can't be written to a checkpoint"):
        save_checkpoint(path, dataclasses.replace(saved, run_state=dataclasses.replace(saved.run_state, state=strange)))
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == [CHECKPOINT]
