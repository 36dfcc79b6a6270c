"""Run folders: one run each, whole files, and one line where something is wrong."""

import dataclasses
import errno
import json
import os
import subprocess
import sys
import threading

import pytest
from commands import refused

from hfp import Experiment, InputError
from hfp.commands.cli import main
from hfp.federation.records import DROPPED, ClientRecord, RoundRecord
from hfp.federation.rounds import Course
from hfp.federation.setup import set_up
from hfp.results.checkpoint import load_checkpoint
from hfp.results.folder import LOCK, RunFolder, locked
from hfp.results.keeping import RunFiles

WORDS = ["run", "--method", "fedavg", "--train-images", "40", "--clients", "2", "--rounds", "2", "--head-start", "1"]
SMALL = Experiment(method="fedavg", train_images=40, clients=2, rounds=2, head_start=1.0)


def full_disk(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_runs_started_in_the_same_second_get_folders_of_their_own(tmp_path):
    folders = [RunFolder(tmp_path / "runs/20260101-000000-fedavg-digits", numbered=True) for _ in range(8)]
    barrier = threading.Barrier(8)

    def make(folder):
        barrier.wait()
        folder.make()

    threads = [threading.Thread(target=make, args=[folder]) for folder in folders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({folder.path for folder in folders}) == 8 == len(list((tmp_path / "runs").iterdir()))


def test_two_runs_never_share_a_folder(tmp_path, capsys):
    code = (
        "import sys, time; from filelock import FileLock\n"  # as `locked`, without torch
        "with FileLock(sys.argv[1]): print('locked', flush=True); time.sleep(600)"
    )
    folder = tmp_path / "out"
    folder.mkdir()
    other = subprocess.Popen([sys.executable, "-c", code, str(folder / LOCK)], stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "locked\n"
    assert "another process is writing to" in refused(capsys, *WORDS, "--out", str(folder))
    assert [path.name for path in folder.iterdir()] == [".lock"]
    other.kill()
    other.communicate()
    with locked(folder):
        pass
    assert list(folder.iterdir()) == []


def test_what_a_run_stopped_in_its_first_round_left_blocks_nothing(tmp_path):
    folder = RunFolder(tmp_path)
    folder.configure(SMALL)
    (tmp_path / ".lock").touch()
    (tmp_path / f".config.json.{'a' * 32}.tmp").write_text("half")
    assert main([*WORDS, "--out", str(tmp_path)]) == 0
    assert not list(tmp_path.glob(".*"))


def test_what_was_left_beside_a_clients_model_is_not_overwritten(tmp_path):
    RunFolder(tmp_path).configure(SMALL)
    (tmp_path / "model.json").write_text("{}")
    (tmp_path / "clients").mkdir()
    RunFolder(tmp_path)
    (tmp_path / "clients/client-0.safetensors").touch()
    with pytest.raises(InputError, match="is not empty"):
        RunFolder(tmp_path)


@pytest.mark.parametrize(("name", "text"), [("model.json", "{}"), ("config.json", '{"mine": 1}')])
def test_a_file_of_something_else_is_left_alone(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match="is not empty"):
        RunFolder(tmp_path)


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "file/run"])
def test_a_folder_that_can_not_be_is_one_line(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    line = refused(capsys, *WORDS, "--out", name)
    assert "output folder" in line
    assert len(line) < 200
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_numbers_that_are_not_finite_are_null_in_files(tmp_path):
    outcome = Course(set_up(dataclasses.replace(SMALL, rounds=1))).advance()
    folder = RunFolder(tmp_path)
    folder.append(dataclasses.replace(outcome.record, loss=float("nan")))
    line = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=pytest.fail)
    assert line["loss"] is None


def test_where_nobody_trained_there_is_no_training_loss():
    record = RoundRecord(
        1, "random", 10.0, 2.0, (ClientRecord(0, 0.5, 9, 99, "phone", 1.0, status=DROPPED),), (0, 0), 0.0
    )
    assert record.as_dict()["train_loss"] is None


def test_a_full_disk_leaves_whole_lines_and_the_last_checkpoint(tmp_path, monkeypatch, capsys):
    real, written = os.fsync, []

    def fills(file):
        written.append(file)
        if len(written) == 13:  # the checkpoint of the second round, after two for each file before it
            full_disk()
        return real(file)

    monkeypatch.setattr(os, "fsync", fills)
    assert main([*WORDS, "--rounds", "3", "--out", str(tmp_path / "out")]) == 2
    line = capsys.readouterr().err
    assert "No space left on device" in line
    assert f"to go on: hfp run --resume {tmp_path}/out" in line
    assert line.count("\n") == 1
    monkeypatch.undo()
    assert len(load_checkpoint(tmp_path / "out").history) == 1
    assert not list((tmp_path / "out").glob(".*"))
    assert main(["run", "--resume", str(tmp_path / "out")]) == 0
    lines = (tmp_path / "out/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["round"] for line in lines] == [1, 2, 3]


def test_half_a_line_that_did_not_fit_is_taken_back(tmp_path, monkeypatch):
    outcome = Course(set_up(dataclasses.replace(SMALL, rounds=1))).advance()
    folder = RunFolder(tmp_path)
    folder.append(outcome.record)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    real = open

    def half(path, mode="r", **settings):
        file = real(path, mode, **settings)
        if mode != "ab":
            return file

        class Full:
            def __enter__(self):
                return self

            def __exit__(self, *_):
                file.close()

            tell = file.tell

            def write(self, content):
                file.write(content[:40])
                file.flush()
                full_disk()

        return Full()

    monkeypatch.setattr("builtins.open", half)
    with pytest.raises(InputError, match=r"metrics.jsonl can't be written: No space left"):
        folder.append(outcome.record)
    monkeypatch.undo()
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_a_folder_that_is_read_only_is_one_line(tmp_path, monkeypatch, capsys):
    def denied(*_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("hfp.atomic.os.replace", denied)
    assert "config.json can't be written: Read-only file system" in refused(
        capsys, *WORDS, "--out", str(tmp_path / "o")
    )


def test_the_same_run_has_the_same_bytes_in_another_process(tmp_path):
    assert main([*WORDS, "--out", str(tmp_path / "one")]) == 0
    words = ["-m", "hfp", *WORDS, "--out", str(tmp_path / "two")]
    subprocess.run([sys.executable, *words], check=True, capture_output=True)
    for name in ("global.safetensors", "config.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_the_model_is_written_whenever_a_checkpoint_is(tmp_path):
    folder, federation = RunFolder(tmp_path), set_up(SMALL)
    files = RunFiles(folder, every=1)
    course = Course(federation, observers=[files])
    files.run_began(federation, ())
    course.advance()
    first = (tmp_path / "global.safetensors").read_bytes()
    course.advance()
    assert (tmp_path / "global.safetensors").read_bytes() != first
