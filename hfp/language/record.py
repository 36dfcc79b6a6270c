"""``hfp_prune.json``: how a folder's model was pruned, and what is needed to build it and to undo it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hfp.errors import InputError
from hfp.language.blocks import KeptBlocks
from hfp.language.folder import ModelFolder, read_object
from hfp.language.names import RECORD
from hfp.reconstruct import MapError
from hfp.reconstruct.files.pruned_file import libraries

INDEX_MAP = "hfp_index_map.safetensors"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class PruneRecord:
    """What is written beside the weights of a pruned model.

    Args:
        parent: the full model's configuration, as its config.json holds it.
        fingerprint: tells the full model's weights from others (`ModelFolder.fingerprint`).
        changed: the fields of the parent's configuration that differ in the model without the removed blocks.
        blocks: which blocks are kept; None where all are.
        plain: whether config.json says the pruned sizes, so that transformers alone reads the folder.
        report: what was asked for and what came out, for people.
        libraries: the version of each library that wrote the folder.
    """

    parent: Mapping[str, Any]
    fingerprint: str
    changed: Mapping[str, Any]
    blocks: KeptBlocks | None
    plain: bool
    report: Mapping[str, Any]
    libraries: Mapping[str, str]

    @classmethod
    def of(
        cls, folder: ModelFolder, changed: Mapping[str, Any], blocks: KeptBlocks | None, plain: bool,
        report: Mapping[str, Any],
    ) -> PruneRecord:  # fmt: skip
        """The record of a folder that is being pruned."""
        return cls(folder.config, folder.fingerprint(), changed, blocks, plain, report, libraries())

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {"format": FORMAT_VERSION, **asdict(self)}

    @classmethod
    def read(cls, folder: Path) -> PruneRecord:
        """Read the record of a folder.

        Raises:
            InputError: there is none, it is damaged, or it is of another format version.
        """
        path = folder / RECORD
        if not path.is_file():
            raise InputError(
                f"{folder} holds no {RECORD}, so hfp did not prune it; load it with transformers, or give a folder "
                "that hfp prune wrote"
            )
        found = read_object(path)
        if found.get("format") != FORMAT_VERSION:
            raise InputError(
                f"{path}: expected format version {FORMAT_VERSION}, found {found.get('format')!r}; use a matching "
                "version of hfp"
            )
        kinds = {
            "parent": dict, "fingerprint": str, "changed": dict, "plain": bool, "report": dict, "libraries": dict,
        }  # fmt: skip
        for name, kind in kinds.items():
            if type(found.get(name)) is not kind:
                raise InputError(f"{path} is damaged: {name!r} is {type(found.get(name)).__name__}")
        return cls(blocks=_blocks(found.get("blocks"), path), **{name: found[name] for name in kinds})


def _blocks(found: Any, path: Path) -> KeptBlocks | None:
    if found is None:
        return None
    kept = found.get("kept") if isinstance(found, dict) else None
    whole = isinstance(kept, list) and all(type(index) is int for index in kept)
    if not whole or type(found.get("count")) is not int or not isinstance(found.get("stack"), str):
        raise InputError(f"{path} is damaged: 'blocks' does not say which blocks are kept")
    try:
        return KeptBlocks(found["stack"], found["count"], tuple(found["kept"]))
    except MapError as error:
        raise InputError(f"{path} is damaged: {error}") from error
