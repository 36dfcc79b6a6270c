"""Worker processes: one that dies costs its own task, and none outlives the process that started it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import worker_tasks

from hfp.comparison.workers import Lost, shared_out

PATIENCE = 60  # seconds


def wait_for(condition: Callable[[], bool]) -> None:
    pause = threading.Event()
    for _ in range(PATIENCE * 20):
        if condition():
            return
        pause.wait(0.05)
    raise AssertionError("it did not happen")


def alive(process: int) -> bool:
    try:
        status = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return status != "Z"


def test_a_process_that_dies_costs_its_own_task() -> None:
    steps: list[int] = []
    tasks = ["a", "die", "b", "exit", "c"]
    found = dict(shared_out(worker_tasks.work, tasks, 2, lambda: steps.append(1)))
    assert sorted(found) == [0, 1, 2, 3, 4]
    assert [found[number][0] for number in (0, 2, 4)] == ["a", "b", "c"]
    assert found[1] == Lost("its process was killed by SIGKILL; if memory ran out, take fewer --jobs")
    assert found[3] == Lost("its process ended with status 3")
    assert len(steps) == 5
    assert os.getpid() not in {found[number][1] for number in (0, 2, 4)}


def test_what_a_task_prints_goes_to_standard_error(capfd: pytest.CaptureFixture[str]) -> None:
    assert [found for _, found in shared_out(worker_tasks.printing, ["noise"], 1, lambda: None)] == ["noise"]
    assert capfd.readouterr() == ("", "noise\n")


def test_processes_end_when_nobody_wants_more(tmp_path: Path) -> None:
    steps: list[int] = []
    with closing(shared_out(worker_tasks.work, ["a", tmp_path / "process"], 2, lambda: steps.append(1))) as results:
        assert next(results)[1][0] == "a"
        wait_for((tmp_path / "process").exists)
        wait_for(lambda: (tmp_path / "process").read_text() != "")
        process = int((tmp_path / "process").read_text())
        assert alive(process)
    assert not alive(process)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc to see other processes")
def test_processes_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    told = tmp_path / "process"
    command = [sys.executable, worker_tasks.__file__, str(told)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, env=environment) as parent:
        wait_for(lambda: told.exists() and told.read_text() != "")
        worker = int(told.read_text())
        assert alive(worker)
        parent.send_signal(signal.SIGKILL)
    wait_for(lambda: not alive(worker))
