"""Where a run stands, in one file, so that it can be resumed: safetensors with a JSON tree beside the tensors.

No pickle: of classes only frozen dataclasses of hfp, or of the method's own module, are made again, by their fields.
Two checkpoints are kept, so that a damaged one costs the rounds since the one before.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import sys
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from hfp.atomic import write_atomically
from hfp.errors import InputError
from hfp.federation.experiment import Experiment
from hfp.federation.records import RoundRecord
from hfp.federation.rounds import RunState
from hfp.federation.setup import Federation
from hfp.results.files import CHECKPOINT, PREVIOUS
from hfp.results.tensor_file import read, to_bytes

VERSION = "3"

MAY_DIFFER = ("rounds", "patience", "device", "data_root", "clients_file", "download")
"""Settings that a resumed run may have otherwise: how long it goes on, and where it and its data are."""

_SAMPLED = 16
"""Images of each client, and of the test set, that the data's fingerprint is taken of."""


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """What is needed to resume a run: its experiment, the data's `fingerprint`, and where the run stands."""

    experiment: Experiment
    run_state: RunState
    data: str = ""

    @property
    def history(self) -> tuple[RoundRecord, ...]:
        """The records of the rounds that were done."""
        return self.run_state.history

    def check(self, experiment: Experiment, federation: Federation | None = None) -> None:
        """Refuse to go on with another experiment, or with other data or another model, than the run had.

        Raises:
            InputError: naming what differs.
        """
        check_settings(experiment, self.experiment)
        if experiment.rounds < len(self.history):
            raise InputError(f"the run has {len(self.history)} rounds already; found rounds {experiment.rounds}")
        if federation is None:
            return
        if self.data != fingerprint(federation):
            raise InputError("the checkpoint is of another run: its clients or its test set had other data than today")
        here, there = federation.initial, self.run_state.state.weights
        if {n: (t.shape, t.dtype) for n, t in here.items()} != {n: (t.shape, t.dtype) for n, t in there.items()}:
            raise InputError("the checkpoint is of another run: its model has tensors of other names or shapes")


def check_settings(experiment: Experiment, before: Experiment) -> None:
    """Refuse to go on with another experiment than the run had `before`.

    Raises:
        InputError: naming the settings that differ.
    """
    mine, theirs = (json.loads(json.dumps(one.as_dict())) for one in (experiment, before))
    differing = [
        f"{name} {theirs[name]!r} and not {mine[name]!r}"
        for name in mine
        if name not in MAY_DIFFER and mine[name] != theirs[name]
    ]
    if differing:
        raise InputError(f"the run is of another experiment: it has {', '.join(differing)}")


def fingerprint(federation: Federation) -> str:
    """Compute a digest of the classes, of all labels, and of some images of every client and of the test set."""
    digest = hashlib.sha256(json.dumps(federation.dataset.classes).encode())
    test = federation.dataset.test
    for images, labels in (*((shard.images, shard.labels) for shard in federation.shards), (test.images, test.labels)):
        for part in (labels, images[:: max(1, len(labels) // _SAMPLED)]):
            digest.update(str((tuple(part.shape), part.dtype)).encode())
            digest.update(part.contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()


def save_checkpoint(
    folder: Path,
    checkpoint: Checkpoint,
    before_rename: Callable[[Path], None] = lambda _: None,
    *,
    replace: bool = False,
) -> None:
    """Write a checkpoint whole or not at all; the one that was there becomes the previous one, or goes with `replace`.

    `before_rename` is called with the finished file before it gets its name.

    Raises:
        InputError: the method or an observer remembers something that can't be written.
        OSError: the file can't be written; those that were there are left.
    """
    tensors: dict[str, Tensor] = {}
    tree = _encode(
        {
            "experiment": json.dumps(checkpoint.experiment.as_dict()),
            "run_state": checkpoint.run_state,
            "data": checkpoint.data,
        },
        tensors,
    )
    content = to_bytes(tensors, {"hfp_checkpoint": VERSION, "tree": json.dumps(tree, separators=(",", ":"))})

    def keep_previous(unfinished: Path) -> None:
        before_rename(unfinished)
        with contextlib.suppress(FileNotFoundError):
            os.replace(folder / CHECKPOINT, folder / PREVIOUS)

    write_atomically(folder / CHECKPOINT, content, before_rename if replace else keep_previous)


def load_checkpoint(folder: Path, say: Callable[[str], None] = lambda _: None) -> Checkpoint:
    """Read a folder's newest checkpoint, or the one before where the newest is missing or damaged; `say` tells so.

    Raises:
        InputError: there is none, it is damaged, or of another version.
    """
    problem = None
    for path in (folder / CHECKPOINT, folder / PREVIOUS):
        try:
            found = _read(path)
        except FileNotFoundError:
            continue
        except _Damaged as error:
            problem = problem or error
            continue
        if problem is not None:
            say(f"{problem}; the one before it, of round {len(found.history)}, is used")
        return found
    if problem is not None:
        raise InputError(str(problem))
    raise InputError(f"there is no checkpoint in {folder}; give the folder of a run that has one")


class _Damaged(Exception):
    pass


def _read(path: Path) -> Checkpoint:
    try:
        metadata, tensors = read(path)
    except InputError as error:
        raise _Damaged(f"checkpoint {error}") from error
    if metadata.get("hfp_checkpoint") != VERSION:
        found = metadata.get("hfp_checkpoint")
        raise InputError(
            f"{path} is no checkpoint of version {VERSION}; it says {found!r}: resume it with the version of hfp that "
            "wrote it"
        )
    try:
        values = _decode(json.loads(metadata["tree"]), tensors)
        if not isinstance(values, dict):
            raise ValueError("it has no experiment")
        checkpoint = Checkpoint(Experiment(**json.loads(values["experiment"])), values["run_state"], values["data"])
        _check(checkpoint)
    except Exception as error:  # any class of ours may refuse its fields in its own way
        raise _Damaged(f"checkpoint {path} is damaged: {type(error).__name__}: {error}") from error
    return checkpoint


def _check(checkpoint: Checkpoint) -> None:
    if not isinstance(checkpoint.run_state, RunState) or not isinstance(checkpoint.data, str):
        raise ValueError("it has no state of a run")
    if not all(isinstance(record, RoundRecord) for record in checkpoint.history):
        raise ValueError("its history is not made of rounds")


def _encode(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Turn a value into plain JSON; what JSON has no form for becomes a list that begins with its kind."""
    if isinstance(value, float) and not math.isfinite(value):
        return ["float", str(value)]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().cpu().contiguous().clone()
        return ["tensor", name]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        kind = type(value)
        _class(kind.__module__, kind.__qualname__)
        fields = {f.name: _encode(getattr(value, f.name), tensors) for f in dataclasses.fields(value) if f.init}
        return ["made", kind.__module__, kind.__qualname__, fields]
    if isinstance(value, Mapping):
        return ["mapping", [[_encode(key, tensors), _encode(part, tensors)] for key, part in value.items()]]
    if isinstance(value, (set, frozenset)):
        return ["set", [_encode(part, tensors) for part in sorted(value)]]
    if isinstance(value, (tuple, list)):
        return ["tuple", [_encode(part, tensors) for part in value]]
    raise InputError(f"a {type(value).__name__} can't be written to a checkpoint; use tensors, numbers and dataclasses")


def _decode(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    if not isinstance(tree, list):
        return tree
    kind, *rest = tree
    if kind == "tensor":
        return tensors[rest[0]]
    if kind == "float":
        return float(rest[0])
    if kind == "made":
        module, name, fields = rest
        return _class(module, name)(**{field: _decode(part, tensors) for field, part in fields.items()})
    if kind == "mapping":
        return {_decode(key, tensors): _decode(part, tensors) for key, part in rest[0]}
    parts = tuple(_decode(part, tensors) for part in rest[0])
    if kind not in ("set", "tuple"):
        raise ValueError(f"unknown kind {kind!r}")
    return frozenset(parts) if kind == "set" else parts


def _class(module: str, name: str) -> type:
    """Find a dataclass that is loaded already, of hfp or of a method's module; a file never has anything imported."""
    from hfp.methods import methods

    allowed: Collection[str] = {method.__module__ for method in methods()}
    found = getattr(sys.modules.get(module), name, None) if module.split(".")[0] == "hfp" or module in allowed else None
    if not (isinstance(found, type) and dataclasses.is_dataclass(found)):
        raise InputError(f"{module}.{name} is no dataclass of hfp or of a method; a checkpoint can't hold it")
    return found
