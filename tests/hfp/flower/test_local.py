"""``hfp flower``'s arguments, workers' folders and keys: what can be tried without starting a deployment."""

import contextlib
import os
import ssl
import stat
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

pytest.importorskip("flwr")

from hfp import InputError
from hfp.commands.cli import main
from hfp.federation.letter import Letter
from hfp.flower import keys, require_flower, worker, workshop
from hfp.flower.local import CONNECTION, LocalDeployment


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["up", "--nodes", "0"], "nodes must be at least 1; found 0"),
        (["up", "--run", "nowhere"], "there is no app in nowhere"),
        (["up", "--secure", "--simulation"], "give --secure or --simulation"),
    ],
)
def test_wrong_arguments_are_one_line(words, reason, capsys):
    assert main(["flower", *words]) == 2
    said = capsys.readouterr().err
    assert reason in said
    assert len(said.splitlines()) == 1


def test_without_flower_or_on_an_old_python_one_is_told(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(InputError, match=r'pip install "hfp\[flower\]"'):
            require_flower()
    monkeypatch.setattr(sys, "version_info", (3, 10, 1))
    with pytest.raises(InputError, match=r"needs Python 3.11 or newer; this is 3.10.1"):
        require_flower()


def test_a_workers_folder_is_its_owners_alone(tmp_path):
    folder = tmp_path / "hfp" / "one"
    with worker._alone(folder):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    os.chmod(folder, 0o755)
    with pytest.raises(InputError, match="only this user can enter"), worker._alone(folder):
        pass


def test_a_worker_does_not_end_while_somebody_speaks_to_it(monkeypatch):
    monkeypatch.setattr(worker, "WATCH", 0.02)
    monkeypatch.setattr(workshop, "answer", lambda *_: (Letter("here"), None))
    with subprocess.Popen(["true"]) as owner:
        owner.wait()
    folder = Path(tempfile.mkdtemp(prefix="hfp-"), "worker")
    with worker._alone(folder):
        serving = threading.Thread(target=worker.serve, args=(folder, owner.pid))
        serving.start()
        time.sleep(0.3)  # many looks at an owner that is gone
        connection = worker._connect(folder)
        assert connection is not None
        with connection:
            worker._send(connection, {}, Letter("{}"), None)
            assert worker._receive(connection)[1] == Letter("here")
    serving.join(60)
    assert not folder.exists()
    folder.parent.rmdir()


def test_a_workers_socket_has_a_short_path_where_the_temporary_folder_has_a_long_one(tmp_path, monkeypatch):
    for there, expected in ((tmp_path, "/tmp"), ("/var/tmp", "/var/tmp")):
        monkeypatch.setattr("tempfile.tempdir", str(there).ljust(100, "x") if there is tmp_path else there)
        folder = worker._folder("a node")
        assert folder.parents[1] == Path(expected)
        assert len(os.fsencode(folder / "socket")) < 104


def test_the_path_of_certificates_may_have_any_letter(tmp_path):
    tomllib = pytest.importorskip("tomllib")
    deployment = LocalDeployment(tmp_path / 'a "b" \\ c 🙂', secure=True)
    config = tomllib.loads((deployment.home / "config.toml").read_text(encoding="utf-8"))
    assert config["superlink"][CONNECTION]["root-certificates"] == str(deployment.folder / "ca.crt")


def test_the_folder_may_be_relative(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    deployment = LocalDeployment(Path("here"), secure=True)
    assert deployment.folder == tmp_path / "here"
    assert str(tmp_path / "here" / "ca.crt") in (deployment.home / "config.toml").read_text(encoding="utf-8")


def test_a_run_that_was_started_ends_with_the_deployment(tmp_path, monkeypatch):
    with LocalDeployment(tmp_path) as deployment:
        monkeypatch.setattr(deployment, "_left_behind", list)  # as on a system without /proc
        process = deployment.start(["sleep", "60"], "run")
        assert process.poll() is None
    assert process.poll() is not None


def test_certificates_pass_the_strict_checks_that_python_makes_from_3_13_on(tmp_path):
    keys.make_certificates(tmp_path)
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context(cafile=tmp_path / "ca.crt")
    server.load_cert_chain(tmp_path / "server.crt", tmp_path / "server.key")
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = client.wrap_bio(down, up, server_hostname="127.0.0.1")
    theirs = server.wrap_bio(up, down, server_side=True)
    for end in (ours, theirs, ours):
        with contextlib.suppress(ssl.SSLWantReadError):
            end.do_handshake()
    assert ours.version() is not None


def test_private_keys_are_readable_by_their_owner_alone(tmp_path):
    keys.make_certificates(tmp_path)
    keys.make_node_key(tmp_path / "node")
    for name in ("server.key", "node"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600
    assert (tmp_path / "node.pub").read_text().startswith("ecdsa-sha2-nistp384 ")
