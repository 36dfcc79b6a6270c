"""``hfp flower up``: paths are taken from where the command was started."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from hfp.commands import cli
from hfp.commands.flower import paths_of_app, with_absolute_paths
from hfp.commands.interruption import SIGNALS, Signals
from hfp.errors import InputError


@pytest.mark.parametrize("quote", ['"', "'"])
@pytest.mark.parametrize("name", ["out", "resume", "data-root", "weights", "keys"])
def test_relative_paths_of_a_run_are_taken_from_where_the_command_was_started(name, quote, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = with_absolute_paths(f"rounds=2 {name}={quote}runs/mine{quote} clients=3")
    assert made == f'rounds=2 {name}="{tmp_path / "runs/mine"}" clients=3'


def test_absolute_and_empty_paths_and_other_settings_stay():
    for config in ('out="/data/mine"', 'out=""', 'method="ca-hfp" about="x"', "rounds=3"):
        assert with_absolute_paths(config) == config


def test_relative_paths_in_the_apps_own_configuration_are_made_absolute(tmp_path, monkeypatch):
    app = tmp_path / "app"
    app.mkdir()
    (app / "pyproject.toml").write_text('[tool.flwr.app.config]\nout = "runs/mine"\nresume = ""\nrounds = 3\n')
    monkeypatch.chdir(tmp_path)
    assert paths_of_app(app) == [f'out="{tmp_path / "runs/mine"}"']
    assert paths_of_app(None) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("not [toml", r"pyproject.toml can't be read"),
        ("tool = 3", "tool in .*pyproject.toml must be a table; found 3"),
        ("[tool.flwr.app]\nconfig = []", "config in .*pyproject.toml must be a table"),
    ],
)
def test_an_app_that_cannot_be_read_is_one_line(text, message, tmp_path):
    (tmp_path / "pyproject.toml").write_text(text)
    with pytest.raises(InputError, match=message):
        paths_of_app(Path(tmp_path))


class Deployment:
    """What stands for the processes of a deployment: it notes what is done, and is sent signals."""

    address, nodes = "here", {}

    def __init__(self, folder, secure, simulation):
        self.folder, self.home, self.link = folder, folder, self
        self.done = Deployment.made = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        os.kill(os.getpid(), signal.SIGINT)  # a second signal, while everything is stopped
        self.done.append("all stopped")

    def start_link(self):
        self.done.append("started")

    def start_nodes(self, count):
        pass

    def poll(self):
        return None

    def run_words(self, app, config, nodes):
        self.config = Deployment.config = config
        return ["flwr", "run"]

    def start(self, words, name, here):
        return self

    def wait(self):
        os.kill(os.getpid(), signal.SIGTERM)

    def stop(self, process):
        os.kill(os.getpid(), signal.SIGTERM)
        self.done.append("run stopped")


@pytest.fixture
def deployment(monkeypatch):
    local = pytest.importorskip("hfp.flower.local")
    monkeypatch.setattr(local, "LocalDeployment", Deployment)
    return Deployment


def test_a_second_signal_leaves_no_process_of_a_deployment_running(deployment, tmp_path, capsys):
    (tmp_path / "pyproject.toml").write_text("[tool.flwr.app.config]\nrounds = 3\n")
    before = {number: signal.getsignal(number) for number in SIGNALS}
    signals = Signals()
    signals.install()
    try:
        handlers = {number: signal.getsignal(number) for number in SIGNALS}
        status = cli.main(["flower", "up", "--run", str(tmp_path)], signals)
        assert handlers == {number: signal.getsignal(number) for number in SIGNALS}
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert status == 143
    assert deployment.made == ["started", "run stopped", "all stopped"]
    assert capsys.readouterr().out.endswith("stopping\n")


@pytest.mark.parametrize(("text", "given"), [('keys = ""', True), ("# no keys", False)])
def test_keys_are_given_to_an_app_that_declares_them(deployment, text, given, tmp_path, monkeypatch):
    (tmp_path / "pyproject.toml").write_text(f"[tool.flwr.app.config]\nrounds = 3\n{text}\n")
    monkeypatch.setattr(deployment, "wait", lambda _: 1)
    monkeypatch.setattr(deployment, "stop", lambda *_: None)
    monkeypatch.setattr(deployment, "__exit__", lambda *_: None)
    assert cli.main(["flower", "up", "--secure", "--run", str(tmp_path)]) == 1
    assert any(part.startswith("keys=") for part in deployment.config) == given
