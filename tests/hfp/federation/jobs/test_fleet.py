"""Worker processes change nothing about a run but how long it takes."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import job_models
import pytest
import torch
from commands import refused
from runs import timeless
from torch import nn

import hfp
from hfp.commands.cli import main
from hfp.data import Dataset, from_tensors, load_dataset
from hfp.federation.jobs.check import check_jobs
from hfp.federation.jobs.description import described, set_up_as
from hfp.federation.jobs.fleet import Jobs, fleet_of
from hfp.federation.jobs.memory import mapped, written
from hfp.federation.records import Run
from hfp.federation.rounds import Course
from hfp.federation.setup import set_up
from hfp.methods import methods
from hfp.methods.fedavg import FedAvg
from hfp.results.beginning import first_lines

SMALL: dict[str, Any] = {"train_images": 80, "clients": 4, "rounds": 3, "head_start": 1.0, "rank": 2, "batch_size": 8}
STRESS = [
    *("--train-images", "120", "--clients", "5", "--head-start", "2", "--batch-size", "8", "--alpha", "0.3"),
    *("--model", "job_models:dropping", "--augment", "--lr", "0.01", "--dropout", "0.3", "--participation", "0.8"),
    *("--profile", "phone,laptop", "--deadline", "0.004", "--late", "join", "--save-clients", "--diagnostics"),
]
OPTIONS: dict[str, dict[str, Any]] = {
    "ca-hfp": {"warmup": 1},
    "prunefl": {"every": 2, "passes": 2, "limit": 2},
    "fedrts": {"every": 2},
    "fiarse": {"structured": False},
}


def files(folder: Path) -> dict[str, bytes]:
    """The files of a run's folder, of the metrics without what this machine took, and no pictures of them."""
    pictures = (".png", ".html")
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*.*") if path.suffix not in pictures}
    texts = {name: path.read_bytes() for name, path in found.items() if name != "config.json"}
    records = [json.loads(line) for line in texts.pop("metrics.jsonl").splitlines()]
    taken = {"seconds": 0, "process_peak_bytes": 0}
    return {**texts, "metrics": repr([{**record, **taken} for record in records]).encode()}


def test_a_run_and_its_files_are_the_same_to_the_last_byte(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    assert main(["run", *STRESS, "--rounds", "4", "--out", str(one)]) == 0
    assert main(["run", *STRESS, "--rounds", "2", "--out", str(two), "--jobs", "2"]) == 0
    assert json.loads((two / "config.json").read_text())["machine"] == {"threads": 1, "workers": 2}
    assert main(["run", "--resume", str(two), "--rounds", "4"]) == 0  # jobs are no part of what a run is
    mine, theirs = files(one), files(two)
    assert mine.keys() == theirs.keys()
    assert {"metrics", "plans.json", "clients/client-0.safetensors"} <= mine.keys()
    seconds_differ = {"checkpoint.safetensors"}  # its history has the seconds that rounds took
    assert [name for name in mine.keys() - seconds_differ if mine[name] != theirs[name]] == []


def run_of(experiment: hfp.Experiment, jobs: int) -> Run:
    federation = set_up(experiment)
    with fleet_of(federation, jobs) as fleet:
        return Course(federation, fleet).run()


def assert_same_run(one: Run, other: Run) -> None:
    assert timeless(one.history) == timeless(other.history)
    for name, tensor in one.global_state.items():
        assert torch.equal(tensor, other.global_state[name]), name


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["reestimate", "local"])
@pytest.mark.parametrize("method", [method.name for method in methods()])
def test_every_method_gives_the_same_run(method: str, policy: str) -> None:
    experiment = hfp.Experiment(
        method=method, options=OPTIONS.get(method, {}), batch_norm=policy, augment=True, personal=2, **SMALL
    )
    assert_same_run(run_of(experiment, 1), run_of(experiment, 3))


def own_data() -> Dataset:
    labels = torch.arange(90) % 3
    values = torch.randn(90, 1, 8, 8, generator=torch.Generator().manual_seed(0)) + labels.view(-1, 1, 1, 1)
    return from_tensors(values[:60], labels[:60], values[60:], labels[60:], name="mine")


@pytest.mark.parametrize(
    "given",
    [
        {"dataset": own_data(), "model": job_models.dropping, "augment": True},
        {"dataset": "digits", "train_images": 80, "budget": {"macs": 0.4}, "diagnostics": True},
    ],
)
def test_a_worker_sets_up_what_the_run_has_with_images_that_are_not_copied(given: dict[str, Any]) -> None:
    federation = set_up(hfp.Experiment(clients=3, rank=2, **given))
    description, tensors = described(federation)
    file, places = written(tensors)
    with file:
        there = set_up_as(json.loads(json.dumps(description)), mapped(file.fileno(), places))
    assert there.context.clients == federation.context.clients
    assert there.context.groups.sizes == federation.context.groups.sizes
    assert there.training == federation.training
    for mine, theirs in zip(federation.shards, there.shards, strict=True):
        every = torch.arange(len(mine.labels))
        assert torch.equal(mine.labels, theirs.labels)
        assert torch.equal(mine.normalise(mine.images[every]), theirs.normalise(theirs.images[every]))
        assert theirs.images._whole is there.dataset.train.images


class OwnClass(Dataset):
    pass


def program_model() -> nn.Module:
    return job_models.dropping()


program_model.__module__ = "__main__"


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"model": job_models.dropping()}, "can't be sent the model Sequential: give the name of a function"),
        ({"model": functools.partial(job_models.dropping)}, "can't be sent the model partial: give the name"),
        ({"model": program_model}, "can't be sent the model program_model: give the name of a function"),
        ({"dataset": OwnClass(**{f.name: getattr(own_data(), f.name) for f in dataclasses.fields(Dataset) if f.init}),
          "model": job_models.dropping}, "mine is of the class OwnClass, which worker processes don't make"),
    ],
)  # fmt: skip
def test_what_cannot_be_sent_to_workers_is_one_line(given: dict[str, Any], line: str) -> None:
    experiment = hfp.Experiment(clients=3, **{"train_images": 80} | given if "dataset" not in given else given)
    federation = set_up(experiment)
    with pytest.raises(hfp.InputError, match=line), fleet_of(federation, 2):
        pass


def test_a_method_of_the_program_itself_cannot_be_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    federation = set_up(hfp.Experiment(method="fedavg", **SMALL))
    monkeypatch.setattr(FedAvg, "__module__", "__main__")
    with pytest.raises(hfp.InputError, match="can't import the method fedavg, which is in the program itself"):
        described(federation)


def test_a_setup_that_fails_in_a_worker_is_one_line_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    federation = set_up(hfp.Experiment(model="job_models:dropping", method="fedavg", **SMALL))
    monkeypatch.setattr(sys, "path", [path for path in sys.path if not path.endswith("support")])
    fleet = Jobs(federation, 1)
    try:
        fleet.begin()
        with pytest.raises(hfp.InputError, match="worker process could not be set up: no model 'job_models:dropping'"):
            Course(federation, fleet).advance()
    finally:
        fleet.end()


@pytest.mark.parametrize(
    ("jobs", "device", "line"),
    [
        (0, "cpu", "jobs must be a whole number of at least 1; found 0"),
        (2, "cuda:1", "jobs must be 1 on cuda:1; found 2: on a GPU clients_in_flight"),
    ],
)
def test_jobs_that_cannot_be_used_are_refused(jobs: int, device: str, line: str, capsys: Any) -> None:
    with pytest.raises(hfp.InputError, match=line):
        check_jobs(jobs, device)
    assert line in refused(capsys, "run", "--jobs", str(jobs), "--device", device)
    with pytest.raises(hfp.InputError, match=line):
        hfp.simulate(hfp.Experiment(device=device, **SMALL), jobs=jobs)


def test_no_more_processes_are_started_than_there_are_clients(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    started = []

    def counted(federation: Any, jobs: int) -> Any:
        started.append(jobs)
        return fleet_of(federation, 1)

    monkeypatch.setattr("hfp.commands.run.fleet_of", counted)
    monkeypatch.setattr("hfp.results.simulate.fleet_of", counted)
    once = {"method": "fedavg", **SMALL, "clients": 2, "rounds": 1}
    hfp.simulate(hfp.Experiment(**once), jobs=1_000_000)
    words = ["--method", "fedavg", "--train-images", "80", "--clients", "3", "--rounds", "1", "--head-start", "1"]
    assert main(["run", *words, "--jobs", "1000000", "--out", str(tmp_path / "run")]) == 0
    assert started == [2, 3]
    assert "3 jobs of" in capsys.readouterr().out
    assert json.loads((tmp_path / "run" / "config.json").read_text())["machine"]["workers"] == 3


def test_the_first_lines_tell_jobs_and_threads_that_are_more_than_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hfp.results.beginning.cores", lambda: 8)
    federation = set_up(hfp.Experiment(method="fedavg", **SMALL))
    assert "machine  cpu, 4 jobs of 2 threads; seed 0" in first_lines(federation, 2, 4)
    assert not any("share" in line for line in first_lines(federation, 2, 4))
    (line,) = (line for line in first_lines(federation, 8, 4) if line.startswith("cores"))
    assert "4 jobs of 8 threads share 8 cores: --threads 2 is faster" in line


def test_the_first_lines_say_a_number_of_images_once_where_clients_have_equally_many() -> None:
    settings = {"method": "fedavg", "clients": 2}
    even = set_up(hfp.Experiment(**settings, partition=[range(0, 20), range(20, 40)]))
    odd = set_up(hfp.Experiment(**settings, partition=[range(0, 15), range(20, 40)]))
    assert any(line.startswith("clients  2 of 20 images (") for line in first_lines(even, 1))
    assert any(line.startswith("clients  2 of 15 to 20 images (") for line in first_lines(odd, 1))


PARENT = """
import sys, time
from hfp.federation.jobs.memory import written
from hfp.federation.jobs.process import Message, WorkerProcess
file, _ = written({})
worker = WorkerProcess(file.fileno())
print(worker.number, flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc to see other processes")
def test_workers_end_with_a_parent_that_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        assert _alive(worker)
        parent.send_signal(signal.SIGKILL)
    pause = threading.Event()
    for _ in range(600):
        if not _alive(worker):
            return
        pause.wait(0.1)
    os.kill(worker, signal.SIGKILL)
    pytest.fail("the worker still runs")


def _alive(process: int) -> bool:
    try:
        status = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return status != "Z"


@pytest.mark.parametrize("kind", ["lists", "file", "own"])
def test_workers_deal_samples_out_as_this_process_does(tmp_path: Path, kind: str) -> None:
    lists = [list(range(0, 30)), list(range(50, 70)), [71, 73]]
    own = {**SMALL, "clients": 3, "train_images": None}
    if kind == "lists":
        experiment = hfp.Experiment(**own, partition=lists)
    elif kind == "file":
        (tmp_path / "who.json").write_text(json.dumps(lists))
        experiment = hfp.Experiment(**own, clients_file=str(tmp_path / "who.json"))
    else:
        digits = load_dataset("digits", limit=60)
        dataset = dataclasses.replace(digits, owners=torch.arange(60) % 3)
        experiment = hfp.Experiment(**own, dataset=dataset, partition="own")
    here = set_up(experiment)
    description, tensors = described(here)
    there = set_up_as(json.loads(json.dumps(description)), tensors)
    for one, other in zip(here.shards, there.shards, strict=True):
        assert torch.equal(one.images[:], other.images[:])
        assert torch.equal(one.labels, other.labels)
