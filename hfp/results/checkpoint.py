"""A run's standing in one file, so that it can be taken up again: safetensors with a JSON tree beside the tensors.

No pickle: of classes only frozen dataclasses of hfp, or of the method's own module, are made again, by their fields.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from hfp.errors import InputError
from hfp.federation.experiment import Experiment
from hfp.federation.records import RoundRecord
from hfp.federation.rounds import RunState
from hfp.results.folder import write_atomically

VERSION = "1"
CHECKPOINT = "checkpoint.safetensors"


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """What is needed to go on: the experiment, the rounds so far, and where the run stands."""

    experiment: Experiment
    history: tuple[RoundRecord, ...]
    run_state: RunState


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint, whole or not at all.

    Raises:
        InputError: the method remembers something that can't be written.
    """
    tensors: dict[str, Tensor] = {}
    tree = _encode(
        {
            "experiment": json.dumps(checkpoint.experiment.as_dict()),
            "history": checkpoint.history,
            "standing": checkpoint.run_state,
        },
        tensors,
    )
    write_atomically(path, save(tensors, {"hfp_checkpoint": VERSION, "tree": json.dumps(tree)}))


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        InputError: there is none, it is damaged, or of another version.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
    except FileNotFoundError:
        raise InputError(f"there is no checkpoint {path}; give the folder of a run that has one") from None
    except (SafetensorError, OSError) as error:
        raise InputError(f"checkpoint {path} can't be read: {error}") from error
    if metadata.get("hfp_checkpoint") != VERSION:
        raise InputError(f"{path} is no checkpoint of version {VERSION}; it says {metadata.get('hfp_checkpoint')!r}")
    try:
        values = _decode(json.loads(metadata["tree"]), tensors)
        return Checkpoint(Experiment(**json.loads(values["experiment"])), values["history"], values["standing"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"checkpoint {path} is damaged: {type(error).__name__}: {error}") from error


def _encode(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Plain JSON; whatever JSON has no form for is a list that begins with its kind."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().cpu().contiguous().clone()
        return ["tensor", name]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        kind = type(value)
        fields = {f.name: _encode(getattr(value, f.name), tensors) for f in dataclasses.fields(value) if f.init}
        return ["made", kind.__module__, kind.__qualname__, fields]
    if isinstance(value, Mapping):
        return ["mapping", [[_encode(key, tensors), _encode(part, tensors)] for key, part in value.items()]]
    if isinstance(value, frozenset):
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
    """A dataclass that is loaded already, from hfp or beside a method; nothing is imported for a file's sake."""
    from hfp.methods import methods

    allowed = module.partition(".")[0] == "hfp" or module in {method.__module__ for method in methods()}
    found = getattr(sys.modules.get(module), name, None) if allowed else None
    if not (isinstance(found, type) and dataclasses.is_dataclass(found)):
        raise ValueError(f"{module}.{name} is no dataclass of hfp or of a method")
    return found
