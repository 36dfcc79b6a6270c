"""A crew answers in order, retries the request of a process that dies, and leaves no process behind."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from hfp.errors import InputError
from hfp.federation.jobs import process
from hfp.federation.jobs.crew import TRIES, Answer, Crew
from hfp.federation.jobs.memory import written
from hfp.federation.jobs.process import Message, WorkerProcess

PROGRAM = "import sys; sys.path[:] = {path!r}; from crew_member import serve; serve({connection}, {data})"


@pytest.fixture
def crew(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Crew]]:
    """Make crews of processes that need no torch; all are ended."""
    monkeypatch.setattr(process, "_PROGRAM", PROGRAM)
    file, _ = written({})
    made: list[Crew] = []

    def make(count: int, **instructions: object) -> Crew:
        crew = Crew(count, lambda: WorkerProcess(file.fileno()), Message(instructions), lambda message: None)
        made.append(crew)
        return crew

    yield make
    for each in made:
        each.end()
    file.close()


def requests(crew: Crew, *asked: dict[str, object]) -> list[Answer]:
    items = list(enumerate(asked))
    answered = list(crew.answers(items, lambda item: Message({"number": item[0], **item[1]})))
    assert [item for item, _ in answered] == items
    return [answer for _, answer in answered]


def numbers(answers: list[Answer]) -> list[int | None]:
    return [None if answer.message is None else answer.message.fields["number"] for answer in answers]


def processes(answers: list[Answer]) -> set[int]:
    return {answer.message.fields["process"] for answer in answers if answer.message is not None}


def alive(number: int) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    return True


def test_answers_come_in_order_from_all_processes_whoever_is_done_first(crew: Callable[..., Crew]) -> None:
    slow_first = crew(3)
    found = requests(slow_first, {"seconds": 0.3}, {}, {"seconds": 0.1}, *[{} for _ in range(30)])
    assert numbers(found) == list(range(33))
    assert len(processes(found)) == 3
    assert os.getpid() not in processes(found)
    assert processes(requests(slow_first, *[{"seconds": 0.05} for _ in range(9)])) == processes(found)


def test_at_most_a_few_answers_wait_for_an_earlier_one(crew: Callable[..., Crew]) -> None:
    asked = []

    def write(number: int) -> Message:
        asked.append(number)
        return Message({"number": number, "seconds": 1.0 if number == 0 else 0.0})

    with closing(crew(2).answers(range(100), write)) as answers:
        next(answers)
        assert len(asked) <= 6


def test_a_request_whose_process_dies_is_given_to_another_once(crew: Callable[..., Crew], tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="takes the place of one that died: its process ended with status 3"):
        found = requests(crew(2), {}, {"once": str(tmp_path / "died")}, {}, {})
    assert numbers(found) == [0, 1, 2, 3]
    assert [answer.problem for answer in found] == ["", "its process ended with status 3", "", ""]


def test_a_request_that_ends_every_process_is_lost_alone(crew: Callable[..., Crew]) -> None:
    with pytest.warns(UserWarning, match="takes the place of one that died") as warned:
        found = requests(crew(2), {}, {"always": True}, {}, {})
    assert numbers(found) == [0, None, 2, 3]
    assert found[1].problem == "its process was killed by SIGKILL; if memory ran out, take fewer --jobs"
    assert len(warned) == TRIES


def test_a_process_that_dies_before_it_is_ready_ends_the_run(crew: Callable[..., Crew]) -> None:
    with pytest.raises(InputError, match="could not be set up: its process was killed by SIGKILL"):
        requests(crew(2, die=True), {})


def test_processes_end_when_nobody_wants_their_answers_and_start_again(crew: Callable[..., Crew]) -> None:
    stopped = crew(2)
    with closing(stopped.answers(range(9), lambda number: Message({"number": number, "seconds": 0.05}))) as answers:
        _, first = next(answers)
    assert not alive(first.message.fields["process"])
    assert numbers(requests(stopped, {}, {})) == [0, 1]


def test_a_name_on_the_path_like_a_library_does_not_hide_the_library(
    crew: Callable[..., Crew], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit(9)")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    assert numbers(requests(crew(1), {})) == [0]


def test_what_a_worker_prints_goes_to_standard_error(
    crew: Callable[..., Crew], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(process, "_PROGRAM", "print('hello', flush=True);" + PROGRAM)
    requests(crew(1), {})
    assert capfd.readouterr() == ("", "hello\n")
