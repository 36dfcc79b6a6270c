"""Share pruned folders through the Hugging Face Hub."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from hfp.errors import InputError, described
from hfp.language.record import PruneRecord

_FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "LICENSE*", "NOTICE*")
"""What is downloaded: no pickles, and no code."""


def push_to_hub(
    folder: str | os.PathLike[str], repo_id: str, *, private: bool | None = None, revision: str | None = None
) -> str:
    """Upload a pruned folder to a repository on the Hugging Face Hub, which is made where there is none.

    huggingface_hub knows who you are (``hf auth login``).

    Args:
        folder: a folder that ``hfp prune hf:...`` wrote.
        repo_id: the repository, "organisation/name".
        private: whether a new repository is private; by default as your account has it.
        revision: the branch; by default the main one.

    Returns:
        The address of the commit.

    Raises:
        InputError: it is no pruned folder, or the Hub refuses it.

    >>> import hfp
    >>> hfp.push_to_hub("no-folder", "me/small-llama")
    Traceback (most recent call last):
    hfp.errors.InputError: no-folder holds no hfp_prune.json, so hfp did not prune it; load it with transformers, ...
    """
    record = PruneRecord.read(Path(folder))
    hub = _hub()
    message = f"Pruned by hfp {record.libraries.get('hfp', '')}".strip()
    try:
        api = hub.HfApi()
        api.create_repo(repo_id, private=private, exist_ok=True)
        return str(
            api.upload_folder(repo_id=repo_id, folder_path=str(folder), revision=revision, commit_message=message)
        )
    except Exception as error:
        raise InputError(f"{folder} can't be uploaded to {repo_id}: {described(error)}") from error


def download(repo_id: str, revision: str | None) -> Path:
    """Download a repository's weights, settings and texts; returns the folder.

    Raises:
        InputError: the Hub has no such repository, or can't be reached.
    """
    try:
        return Path(_hub().snapshot_download(repo_id, revision=revision, allow_patterns=list(_FILES)))
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"there is no folder {repo_id}, and it can't be downloaded from the Hub: {described(error)}"
        ) from error


def _hub() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise InputError(f'this needs huggingface_hub ({error}): pip install "hfp[transformers]"') from error
    return huggingface_hub
