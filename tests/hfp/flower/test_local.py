"""``hfp flower``'s arguments, workers' folders and keys: what can be tried without starting a deployment."""

import os
import stat
import sys

import pytest

pytest.importorskip("flwr")

from hfp import InputError
from hfp.commands.cli import main
from hfp.flower import keys, require_flower, worker


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


def test_private_keys_are_readable_by_their_owner_alone(tmp_path):
    keys.make_certificates(tmp_path)
    keys.make_node_key(tmp_path / "node")
    for name in ("server.key", "node"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600
    assert (tmp_path / "node.pub").read_text().startswith("ecdsa-sha2-nistp384 ")
