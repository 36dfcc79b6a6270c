"""A run that is stopped, at whatever moment and in whatever way, goes on to the end that it would have had."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cases import by_default
from runs import OF_THE_MACHINE, timeless

from hfp import Experiment, InputError, Observer, load_run, simulate
from hfp.commands.cli import main
from hfp.comparison.definition import Comparison, variants_of
from hfp.comparison.runs import ComparisonFolder, run_missing
from hfp.federation.rounds import Course
from hfp.methods import methods
from hfp.results import checkpoint
from hfp.results.files import CHECKPOINT, PREVIOUS
from hfp.results.submodels import PlansFile, read_plans
from hfp.results.tensor_file import read

KILLER = Path(__file__).parents[2] / "support/kill_runs.py"
TINY = {"train_images": 40, "clients": 3, "rounds": 3, "head_start": 1.0, "batch_norm": "aggregate"}
METHODS = {
    "ca-hfp": {
        "options": {"warmup": 1, "estimator": "secant"},
        "diagnostics": True,
        "personal": 1,
        "participation": 0.7,
        "dropout": 0.2,
    },
    "fedmp": {"options": {"bandit": True}, "replan": 2},
    "prunefl": {"options": {"passes": 1, "limit": 1, "every": 2}},
    "fjord": {"options": {"widths": [0.5, 1.0]}},
    "heterofl": {"profile": ("laptop", "board"), "deadline": 0.005, "late": "join"},
}
WORDS = ["--train-images", "40", "--clients", "3", "--rounds", "3", "--head-start", "1", "--method", "fedavg"]


class Stops(Observer):
    """Interrupts a run in the middle of its second round, or before its third where nobody is asked in the second."""

    def round_began(self, state):
        self._done = state.round
        if self._done == 2:
            raise KeyboardInterrupt

    def client_done(self, record):
        if self._done == 1:
            raise KeyboardInterrupt


def figures_in(lines):
    return [{name: value for name, value in json.loads(line).items() if name not in OF_THE_MACHINE} for line in lines]


def assert_same_run(one: Path, other: Path):
    """The files of two runs agree bit for bit, but for wall time."""
    assert (one / "global.safetensors").read_bytes() == (other / "global.safetensors").read_bytes()
    mine, theirs = ((folder / "metrics.jsonl").read_text().splitlines() for folder in (one, other))
    assert figures_in(mine) == figures_in(theirs)
    mine, theirs = (read(folder / CHECKPOINT)[1] for folder in (one, other))
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in mine.items())
    for name in ("model.json", "plans.json"):
        assert (one / name).read_bytes() == (other / name).read_bytes()
    assert [path.name for path in one.iterdir() if path.suffix == ".tmp"] == []


@pytest.mark.parametrize(
    "name", by_default(["ca-hfp", "prunefl", "fedmp", "heterofl", "depthfl"], [method.name for method in methods()])
)
def test_every_method_goes_on_from_the_middle_of_a_round_to_the_identical_end(name, tmp_path):
    experiment = Experiment(method=name, **{**TINY, **METHODS.get(name, {})})
    run = simulate(experiment, resume=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        simulate(experiment, observers=[Stops()], resume=tmp_path / "part")
    assert (tmp_path / "part/global.safetensors").exists()
    again = simulate(experiment, resume=tmp_path / "part")
    assert_same_run(tmp_path / "part", tmp_path / "whole")
    assert timeless(again.history) == timeless(run.history)
    if name == "heterofl":
        assert any(client.status == "late" for record in run.history for client in record.clients)


def killed(way, method, folder):
    settings = json.dumps({**TINY, **METHODS.get(method, {})})
    words = [sys.executable, str(KILLER), way, method, str(folder), settings]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("name", [method.name for method in methods()])
def test_runs_killed_at_twenty_random_moments_go_on_to_the_identical_end(name, tmp_path):
    simulate(Experiment(method=name, **{**TINY, **METHODS.get(name, {})}), resume=tmp_path / "whole")
    assert killed("moments", name, tmp_path / "parts") >= 20
    assert killed("writes", name, tmp_path / "parts/writes") > 0
    for part in (tmp_path / "parts").iterdir():
        assert_same_run(part, tmp_path / "whole")


def interrupt_after(monkeypatch, rounds):
    real = Course.advance

    def advance(course):
        if len(course.history) == rounds:
            raise KeyboardInterrupt
        return real(course)

    monkeypatch.setattr(Course, "advance", advance)


def test_the_command_resumes_with_the_settings_it_was_started_with(tmp_path, monkeypatch, capsys):
    whole, part = tmp_path / "whole", tmp_path / "part"
    assert main(["run", *WORDS, "--out", str(whole)]) == 0
    with monkeypatch.context() as patch:
        interrupt_after(patch, 2)
        assert main(["run", *WORDS, "--out", str(part)]) == 130
    assert f"to go on: hfp run --resume {part}" in capsys.readouterr().out
    assert (part / PREVIOUS).exists()
    assert main(["run", "--resume", str(part)]) == 0
    assert "goes on after round 2 of 3" in capsys.readouterr().out
    assert_same_run(part, whole)
    assert not (part / PREVIOUS).exists()
    assert main(["run", "--resume", str(part), "--rounds", "4"]) == 0
    assert len((part / "metrics.jsonl").read_text().splitlines()) == 4


def test_a_resumed_run_knows_the_options_of_its_own_method(tmp_path, capsys):
    simulate(Experiment(method="fedprox", options={"mu": 0.1}, **{**TINY, "rounds": 1}), resume=tmp_path)
    assert main(["run", "--resume", str(tmp_path), "--rounds", "2", "--option", "mu=0.1"]) == 0
    assert main(["run", "--resume", str(tmp_path), "--rounds", "2", "--option", "warmup=1"]) == 2
    assert "unknown option of fedprox 'warmup'" in capsys.readouterr().err


def test_a_resumed_run_goes_on_saving_its_clients_models(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt_after(patch, 1)
        assert main(["run", *WORDS, "--save-clients", "--out", str(tmp_path)]) == 130
    assert main(["run", "--resume", str(tmp_path)]) == 0
    run = load_run(tmp_path)
    assert [run.submodel(client).round for client in range(3)] == [3, 3, 3]
    assert run.settings.keys() == run.experiment.as_dict().keys()


def test_checkpoints_every_other_round_lose_no_finished_round_to_ctrl_c(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt_after(patch, 1)
        assert main(["run", *WORDS, "--checkpoint", "2", "--out", str(tmp_path / "part")]) == 130
    assert (tmp_path / "part" / CHECKPOINT).exists()
    assert main(["run", "--resume", str(tmp_path / "part"), "--checkpoint", "2"]) == 0
    assert main(["run", *WORDS, "--out", str(tmp_path / "whole")]) == 0
    assert_same_run(tmp_path / "part", tmp_path / "whole")


def test_without_checkpoints_a_run_is_taken_up_at_its_beginning(tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        interrupt_after(patch, 1)
        assert main(["run", *WORDS, "--checkpoint", "0", "--out", str(tmp_path / "part")]) == 130
    assert not (tmp_path / "part" / CHECKPOINT).exists()
    assert (tmp_path / "part/global.safetensors").exists()
    assert main(["run", "--resume", str(tmp_path / "part")]) == 0
    assert "no checkpoint was written yet: the run starts anew" in capsys.readouterr().out
    assert len((tmp_path / "part/metrics.jsonl").read_text().splitlines()) == 3


def test_a_finished_run_without_a_checkpoint_is_not_begun_anew(tmp_path):
    experiment = Experiment(method="fedavg", **{**TINY, "rounds": 1})
    simulate(experiment, resume=tmp_path, checkpoint=0)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    with pytest.raises(InputError, match="is finished and has no checkpoint"):
        simulate(experiment, resume=tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


def test_rounds_of_another_experiment_are_not_overwritten(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        simulate(Experiment(method="fedavg", **TINY), observers=[Stops()], resume=tmp_path, checkpoint=0)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    with pytest.raises(InputError, match="the run is of another experiment: it has method 'fedavg' and not 'heterofl'"):
        simulate(Experiment(method="heterofl", **TINY), resume=tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


def test_plans_whose_writing_is_interrupted_are_written_when_the_run_ends(tmp_path, monkeypatch):
    real, calls = PlansFile.write, []

    def write(file, plans):
        calls.append(plans)
        if len(calls) == 2:
            raise KeyboardInterrupt
        real(file, plans)

    monkeypatch.setattr(PlansFile, "write", write)
    with pytest.raises(KeyboardInterrupt):
        simulate(Experiment(method="fedavg", **TINY), resume=tmp_path)
    assert {plan.round for plan in read_plans(tmp_path)[1]} == {2}


def test_a_run_that_went_on_from_the_checkpoint_before_survives_a_kill_between_two_renames(tmp_path, monkeypatch):
    experiment, whole, part = Experiment(method="fedavg", **TINY), tmp_path / "whole", tmp_path / "part"
    simulate(experiment, resume=whole)
    with monkeypatch.context() as patch:
        interrupt_after(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            simulate(experiment, resume=part)
    assert (part / PREVIOUS).exists()
    (part / CHECKPOINT).write_bytes(b"damaged")
    with monkeypatch.context() as patch:
        real = os.replace

        def killed(source, target):
            if Path(target).name == CHECKPOINT and not Path(target).exists():
                raise KeyboardInterrupt
            real(source, target)

        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            simulate(experiment, resume=part)
    simulate(experiment, resume=part)
    assert_same_run(part, whole)


def test_a_resumed_run_reads_its_checkpoint_once(tmp_path, monkeypatch):
    experiment = Experiment(method="fedavg", **{**TINY, "rounds": 2})
    with pytest.raises(KeyboardInterrupt):
        simulate(experiment, observers=[Stops()], resume=tmp_path)
    reads = []
    monkeypatch.setattr(checkpoint, "read", lambda path: reads.append(path.name) or read(path))
    simulate(experiment, resume=tmp_path)
    assert reads == [CHECKPOINT]


def test_half_a_line_of_metrics_is_gone_after_the_run_is_resumed(tmp_path):
    experiment = Experiment(method="fedavg", **{**TINY, "rounds": 2})
    with pytest.raises(KeyboardInterrupt):
        simulate(experiment, observers=[Stops()], resume=tmp_path)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"round": 2, "accu')
    (tmp_path / f".global.safetensors.{'0' * 32}.tmp").write_text("half")
    simulate(experiment, resume=tmp_path)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["round"] for line in lines] == [1, 2]
    assert list(tmp_path.glob(".*")) == []


def test_an_observers_own_state_is_resumed(tmp_path):
    class Counts(Observer):
        def __init__(self):
            self.updates = torch.zeros(())

        def update_came(self, state, update):
            self.updates = self.updates + 1

        @property
        def observer_state(self):
            return {"updates": self.updates}

        def restore(self, observer_state):
            self.updates = observer_state["updates"]

    experiment = Experiment(method="fedavg", **TINY)
    with pytest.raises(KeyboardInterrupt):
        simulate(experiment, observers=[Counts(), Stops()], resume=tmp_path)
    counts = Counts()
    simulate(experiment, observers=[counts], resume=tmp_path)
    assert counts.updates == 9


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seed", "1"], "the run is of another experiment: it has seed 0 and not 1"),
        (["--rounds", "1"], "the run has 3 rounds already; found rounds 1"),
        (["--out", "x"], "give --resume or --out, not both"),
        (["--checkpoint", "-1"], "checkpoint must be at least 0; found -1"),
    ],
)
def test_a_run_that_cannot_be_resumed_so_is_refused_in_one_line(words, message, finished, capsys):
    assert main(["run", "--resume", str(finished), *words]) == 2
    line = capsys.readouterr().err
    assert message in line
    assert line.count("\n") == 1


def test_a_folder_without_a_run_can_not_be_resumed(tmp_path, capsys):
    assert main(["run", "--resume", str(tmp_path / "nothing")]) == 2
    assert "there is no run in" in capsys.readouterr().err
    assert not (tmp_path / "nothing").exists()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "finished"
    simulate(Experiment(method="fedavg", **TINY), resume=folder)
    return folder


def test_other_data_than_before_is_refused(finished, monkeypatch):
    monkeypatch.setattr("hfp.results.checkpoint.fingerprint", lambda federation: "other")
    with pytest.raises(InputError, match="its clients or its test set had other data"):
        simulate(Experiment(method="fedavg", **{**TINY, "rounds": 4}), resume=finished)


def test_a_comparison_goes_on_in_the_middle_of_a_run(tmp_path, monkeypatch):
    comparison = Comparison(variants_of(["ca-hfp"]), {n: v for n, v in TINY.items() if n != "batch_norm"}, seeds=(0,))
    whole, part = ComparisonFolder(tmp_path / "whole"), ComparisonFolder(tmp_path / "part")

    def run_in(folder):
        rounds = []
        folder.describe(comparison)
        run_missing(comparison, folder, 1, lambda: rounds.append(1), lambda cell: None, every=1)
        return len(rounds)

    assert run_in(whole) == 3
    with monkeypatch.context() as patch:
        interrupt_after(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            run_in(part)
    assert run_in(part) == 1
    (cell,) = comparison.cells()
    results = [folder.load(cell.experiment) for folder in (whole, part)]
    for result in results:
        for record in result["history"]:
            for name in OF_THE_MACHINE:
                del record[name]
    assert results[0] == results[1]
    assert not (tmp_path / "part/unfinished").exists()
