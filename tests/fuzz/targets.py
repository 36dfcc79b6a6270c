"""What is fuzzed: each reader of bytes from outside, good inputs to start from, and the errors that it may raise."""

from __future__ import annotations

import functools
import io
import json
import struct
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from safetensors.torch import save
from torch import nn

from hfp import InputError
from hfp.comparison.definition import comparison_from, read_comparison
from hfp.costs.payload import layout, pack, unpack
from hfp.federation import wire
from hfp.federation.experiment import Experiment
from hfp.federation.letter import Letter
from hfp.federation.rounds import RunState
from hfp.flower.letter import BODY, HEADER, NUMPY, from_records
from hfp.methods import Client, MethodContext, Reply, ServerState, Task
from hfp.reconstruct import Coupling, MapError, Pruned, compact_model, load_pruned, read_pruned, save_pruned
from hfp.results.checkpoint import CHECKPOINT, Checkpoint, load_checkpoint, save_checkpoint

FOLDER = Path(tempfile.mkdtemp(prefix="hfp-fuzz-"))


@dataclass(frozen=True)
class Target:
    """One reader: `read` takes bytes and may raise `errors`, and nothing else."""

    name: str
    seeds: tuple[bytes, ...]
    read: Callable[[bytes], object]
    errors: tuple[type[Exception], ...] = (InputError, MapError)

    def run(self, content: bytes) -> bool:
        """Read; whether the content was taken."""
        try:
            self.read(content)
        except self.errors:
            return False
        return True


def small() -> nn.Sequential:
    """A small network that runs on images of 6 by 6."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    )


MODEL = small()
GROUPS = Coupling.trace(MODEL, torch.zeros(2, 1, 6, 6), [MODEL[5]])
GROUP = next(iter(GROUPS.sizes))
PLAN = GROUPS.plan({GROUP: [0, 2]})
INDEX_MAP = GROUPS.index_map(PLAN)
CONTEXT = MethodContext(
    MODEL, GROUPS, tuple(dict(MODEL.named_parameters())), (Client(0, 10, 0.5),), 0, torch.zeros(1, 1, 6, 6)
)
TASK = Task(PLAN, INDEX_MAP, INDEX_MAP.restrict(MODEL.state_dict()), {"share": 0.5})


def _pruned_seeds() -> tuple[bytes, ...]:
    path = save_pruned(Pruned(compact_model(MODEL, INDEX_MAP), INDEX_MAP, {"criterion": "l1"}), FOLDER / "seed")
    sealed = path.read_bytes()
    (length,) = struct.unpack("<Q", sealed[:8])
    header = json.loads(sealed[8 : 8 + length])
    del header["__metadata__"]["hfp_checksum"]  # without it, changes reach what lies behind
    return sealed, _framed(json.dumps(header).encode(), sealed[8 + length :])


def _framed(header: bytes, body: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header + body


def _read_pruned(content: bytes) -> None:
    path = FOLDER / "m.safetensors"
    path.write_bytes(content)
    if read_pruned(path).timm is None:  # making models of timm takes too long here
        load_pruned(path, MODEL)


def _checkpoint_seeds() -> tuple[bytes, ...]:
    state = ServerState(1, {"weight": torch.ones(2)}, {"velocity": (torch.zeros(2), 0.5, None)})
    checkpoint = Checkpoint(Experiment(rounds=2), RunState(state, {0: (0, "train", PLAN)}, _cohort_state()))
    save_checkpoint(FOLDER, checkpoint)
    return ((FOLDER / CHECKPOINT).read_bytes(),)


def _cohort_state() -> object:
    from hfp.federation.participation import CohortState

    return CohortState({0: 1})


def _read_checkpoint(content: bytes) -> None:
    folder = FOLDER / "checkpoint"
    folder.mkdir(exist_ok=True)
    (folder / CHECKPOINT).write_bytes(content)
    load_checkpoint(folder)


TOML = b"""
[compare]
methods = ["fedavg", "ca-hfp"]
seeds = [0, 1]
alphas = [0.1, 1]
ratios = [0.25]
target = 80
[experiment]
rounds = 4
profile = ["phone", "board"]
deadline = 1.5
[options.ca-hfp]
warmup = 2
[[variant]]
name = "mine"
method = "fedprox"
options = { mu = 0.1 }
"""


def _read_toml(content: bytes) -> None:
    path = FOLDER / "compare.toml"
    path.write_bytes(content)
    comparison_from(read_comparison(path))


def _read_payload(content: bytes) -> None:
    unpack(content, layout(TASK.tensors))


def _letter(kind: Callable[[Letter], object]) -> Callable[[bytes], object]:
    """A reader of a letter whose header comes before the first zero byte, and its body after it."""

    def read(content: bytes) -> object:
        header, _, body = content.partition(b"\0")
        return kind(Letter(header.decode("utf-8", "replace"), body))

    return read


def _joined(letter: Letter) -> bytes:
    return letter.header.encode() + b"\0" + letter.body


def _read_records(content: bytes) -> None:
    array = Array("uint8", (3,), NUMPY, content)
    from_records(RecordDict({HEADER: ConfigRecord({HEADER: "{}"}), BODY: ArrayRecord({BODY: array})}))


def _numpy_file() -> bytes:
    import numpy as np

    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3, dtype=np.uint8))
    return buffer.getvalue()


def _read_plan(content: bytes) -> None:
    try:
        kept = json.loads(content)
    except (ValueError, RecursionError):
        return
    if isinstance(kept, dict):
        GROUPS.index_map(GROUPS.plan(kept)).restrict(MODEL.state_dict())


@functools.cache
def targets() -> dict[str, Target]:
    """All targets, by name."""
    reply = Reply(TASK.tensors, 1, 2, 0.5, 3, 4, 5, 6)
    client, full = CONTEXT.clients[0], MODEL.state_dict()
    known = wire.statistics_layout(full)
    moments = {name: full[name] for name in known}
    found = (
        Target("pruned-file", _pruned_seeds(), _read_pruned),
        Target("checkpoint", _checkpoint_seeds(), _read_checkpoint),
        Target("toml", (TOML,), _read_toml),
        Target("payload", (pack(TASK.tensors), save({"float32": torch.zeros(3)})), _read_payload),
        Target("numpy-body", (_numpy_file(),), _read_records),
        Target(
            "task",
            (_joined(wire.write_task(CONTEXT, 0, client, TASK)),),
            _letter(lambda letter: wire.read_task(CONTEXT, letter, 0, {})),
        ),
        Target(
            "reply",
            (_joined(wire.write_reply(CONTEXT, 0, client, TASK, reply, ["mask"])),),
            _letter(lambda letter: (wire.failure_in(letter), wire.read_reply(CONTEXT, 0, client, TASK, letter))),
        ),
        Target("hello", (_joined(wire.write_hello(0, 10, "digest")),), _letter(wire.read_hello)),
        Target(
            "statistics",
            (_joined(wire.write_state(wire.STATISTICS, moments, known)),),
            _letter(lambda letter: wire.read_state(wire.STATISTICS, letter, known)),
        ),
        Target("plan", (b'{"0": [0, 2]}', json.dumps({GROUP: [0, 1, 3]}).encode()), _read_plan),
    )
    return {target.name: target for target in found}
