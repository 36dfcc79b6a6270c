"""The process that holds torch: started by the first message, used by the next, ended with its node."""

import json
import os
import signal
import subprocess
import sys
import time
from multiprocessing import Pipe
from pathlib import Path

import pytest

pytest.importorskip("flwr")

from hfp import InputError
from hfp.federation import wire
from hfp.federation.letter import Letter
from hfp.flower import worker

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32", reason="Unix sockets")]

CONFIG = {"method": "fedavg", "clients": 2, "train-images": 60, "rounds": 1}


@pytest.fixture
def node(monkeypatch):
    """A process to own the worker, and a name that no other test has."""
    with subprocess.Popen(["sleep", "600"]) as owner:
        monkeypatch.setattr(worker, "_owner", lambda: owner.pid)
        name = f"test-{os.getpid()}-{time.monotonic_ns()}"
        yield owner, name
        owner.kill()
        owner.wait()
    until(lambda: not (worker._folder(name) / "socket").exists())


def until(holds):
    end = time.monotonic() + 120
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.1)


def request(kind="hello", client=1, **config):
    text = json.dumps({**CONFIG, **config}, sort_keys=True)
    return {"kind": kind, "client": client, "clients": 2, "config": text, "problem": None}


def test_it_answers_many_messages_and_ends_with_its_node(node):
    owner, name = node
    answer, kept = worker.ask(name, request(), Letter("{}"), None)
    assert wire.read_hello(answer)[0] == 1
    assert kept is None
    assert wire.read_hello(worker.ask(name, request(client=0), Letter("{}"), None)[0])[0] == 0
    wrong, _ = worker.ask(name, request("train"), Letter("no"), None)
    assert wire.failure_in(wrong)[0] == wire.FAILED
    unknown, _ = worker.ask(name, request(method="nothing"), Letter("{}"), None)
    assert "unknown method" in wire.failure_in(unknown)[1]
    folder = worker._folder(name)
    assert (folder / "socket").exists()
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    until(lambda: not folder.exists())


def test_nothing_is_sent_after_the_last_byte():
    ours, theirs = Pipe()
    with ours, theirs:

        class Closing:
            """Its other end closes as soon as it has the whole letter."""

            sent = 0

            def send_bytes(self, part):
                ours.send_bytes(part)
                self.sent += 1
                if self.sent == 5:
                    received.append(worker._receive(theirs))
                    theirs.close()

        received = []
        worker._send(Closing(), {"kind": "hello"}, Letter("[]", b"body"), None)
        assert received == [({"kind": "hello"}, Letter("[]", b"body"), None)]
        assert theirs.closed


def test_what_a_client_keeps_comes_along():
    ours, theirs = Pipe()
    with ours, theirs:
        worker._send(ours, {}, Letter("{}"), Letter("{}", bytes(range(256))))
        assert worker._receive(theirs) == ({}, Letter("{}"), Letter("{}", bytes(range(256))))


def test_a_connection_that_ends_early_is_an_error_of_one_line(monkeypatch):
    ours, theirs = Pipe()
    theirs.close()
    monkeypatch.setattr(worker, "_connect", lambda folder: ours)
    with pytest.raises(InputError, match="worker ended before it answered"):
        worker.ask(f"test-{os.getpid()}-{time.monotonic_ns()}", {}, Letter("{}"), None)


def test_one_that_doesnt_start_is_told_of(node, monkeypatch):
    _, name = node
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(InputError, match="worker doesn't start; see .*log"):
        worker.ask(name, request(), Letter("{}"), None)
    assert isinstance(worker._folder(name), Path)
