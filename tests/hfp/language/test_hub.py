"""Folders go to the Hub and come back from it, here a folder that stands for it."""

from __future__ import annotations

import shutil
from fnmatch import fnmatch
from pathlib import Path

import pytest

pytest.importorskip("transformers")

import huggingface_hub
from language_models import equal_states, llama, saved

import hfp
from hfp.errors import InputError
from hfp.language import prune_folder


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """A folder in place of the Hub: repositories are folders in it."""
    home = tmp_path / "hub"
    home.mkdir()

    class FakeApi:
        def create_repo(self, repo_id, *, private=None, exist_ok=False):
            (home / repo_id).mkdir(parents=True, exist_ok=exist_ok)

        def upload_folder(self, *, repo_id, folder_path, revision=None, commit_message=None):
            assert commit_message.startswith("Pruned by hfp")
            shutil.copytree(folder_path, home / repo_id, dirs_exist_ok=True)
            return f"https://hub.invalid/{repo_id}/commit/1"

    def snapshot_download(repo_id, *, revision=None, allow_patterns=None):
        if not (home / repo_id).is_dir():
            raise huggingface_hub.errors.HfHubHTTPError("404 Client Error:\nRepository Not Found", response=_Response())
        target = tmp_path / "cache" / (revision or "main")
        target.mkdir(parents=True, exist_ok=True)
        for file in (home / repo_id).iterdir():
            if any(fnmatch(file.name, pattern) for pattern in allow_patterns):
                shutil.copyfile(file, target / file.name)
        return str(target)

    class _Response:
        headers: dict[str, str] = {}
        request = None

    monkeypatch.setattr(huggingface_hub, "HfApi", FakeApi)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.chdir(tmp_path)
    return home


def test_a_pruned_folder_goes_up_and_comes_down(hub, tmp_path):
    saved(llama(), tmp_path / "full")
    prune_folder(tmp_path / "full", tmp_path / "small", hfp.Budget(ratio=0.5))
    assert hfp.push_to_hub(tmp_path / "small", "me/small").endswith("me/small/commit/1")
    (hub / "me" / "small" / "pytorch_model.bin").write_bytes(b"\x80")
    found = hfp.from_pretrained("me/small")
    assert not (tmp_path / "cache" / "main" / "pytorch_model.bin").exists()
    assert equal_states(found.model.state_dict(), hfp.from_pretrained(tmp_path / "small").model.state_dict())


def test_a_repository_that_is_not_there_is_one_line(hub):
    with pytest.raises(InputError, match="there is no folder me/none, and it can't be downloaded") as error:
        hfp.from_pretrained("me/none")
    assert "\n" not in str(error.value)


def test_only_pruned_folders_are_uploaded(hub, tmp_path):
    with pytest.raises(InputError, match="hfp did not prune it"):
        hfp.push_to_hub(tmp_path, "me/own")
    assert list(hub.iterdir()) == []


def test_a_revision_is_of_a_repository(hub, tmp_path):
    (tmp_path / "here").mkdir()
    with pytest.raises(InputError, match="a revision is of a repository on the Hub"):
        hfp.from_pretrained(tmp_path / "here", revision="v1")
