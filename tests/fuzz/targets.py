"""What is fuzzed: each reader of bytes from outside, good inputs to start from, and the errors that it may raise."""

from __future__ import annotations

import atexit
import dataclasses
import functools
import io
import json
import shutil
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
from hfp.federation.replies import ReplyCheck
from hfp.federation.rounds import RunState
from hfp.federation.setup import Federation
from hfp.flower.letter import BODY, HEADER, NUMPY, from_records
from hfp.methods import Client, MethodContext, Reply, ServerState, Task, Update, create_method
from hfp.reconstruct import Coupling, MapError, Pruned, compact_model, load_pruned, read_pruned, save_pruned
from hfp.results.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from hfp.results.files import CHECKPOINT
from hfp.training.batch_norm import Pool
from hfp.training.local_step import LocalTraining

FOLDER = Path(tempfile.mkdtemp(prefix="hfp-fuzz-"))
atexit.register(shutil.rmtree, FOLDER, ignore_errors=True)


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
    return sealed, _unsealed(sealed, "hfp_checksum")


def _unsealed(sealed: bytes, checksum: str) -> bytes:
    """The file without its checksum, so that changes reach what lies behind."""
    (length,) = struct.unpack("<Q", sealed[:8])
    header = json.loads(sealed[8 : 8 + length])
    del header["__metadata__"][checksum]
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + sealed[8 + length :]


def _read_pruned(content: bytes) -> None:
    path = FOLDER / "m.safetensors"
    path.write_bytes(content)
    if read_pruned(path).timm is None:  # making models of timm takes too long here
        load_pruned(path, MODEL)


def _checkpoint_seeds() -> tuple[bytes, ...]:
    state = ServerState(1, {"weight": torch.ones(2)}, {"velocity": (torch.zeros(2), 0.5, None)})
    checkpoint = Checkpoint(Experiment(rounds=2), RunState(state, {0: (0, "train", PLAN)}, _cohort_state()))
    save_checkpoint(FOLDER, checkpoint)
    sealed = (FOLDER / CHECKPOINT).read_bytes()
    return sealed, _unsealed(sealed, "sha256")


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


class _Round:
    """A server's round with an honest client, and another that says what is fuzzed."""

    def __init__(self) -> None:
        experiment = Experiment(clients=2, head_start=1.0)
        training = LocalTraining(epochs=1, batch_size=5, learning_rate=0.1, momentum=0.0, weight_decay=0.0)
        context = dataclasses.replace(CONTEXT, clients=(Client(0, 10, 0.5), Client(1, 10, 0.5)))
        self.context, self.method = context, create_method("ca-hfp")
        self.check = ReplyCheck(
            Federation(experiment, self.method, None, (), MODEL, context, training, torch.device("cpu"), "")
        )
        self.state = self.method.start(context, dict(MODEL.state_dict()))
        plan = self.method.plan(context, self.state, context.clients[0])
        self.task = self.method.send(context, self.state, context.clients[0], plan)
        self.reply = Reply(dict(self.task.tensors), 2, 10, 0.5, 10, 100, 1000, 100)
        assert not self.check.problem_of(self.state, self._update(0, self.reply))

    def letter(self) -> Letter:
        """What the second client says when it is honest."""
        return wire.write_reply(self.context, 0, self.context.clients[1], self.task, self.reply)

    def read(self, letter: Letter) -> None:
        """Take the second client's letter as the server does, and check the state that comes of the round."""
        if wire.failure_in(letter) is not None:
            return
        said, _ = wire.read_reply(self.context, 0, self.context.clients[1], self.task, letter)
        collector = self.method.collect(self.context, self.state)
        collector.add(self._update(0, self.reply))
        liar = self._update(1, said)
        problem = self.check.problem_of(self.state, liar)
        if not problem:
            collector.add(liar)
        after, dropped = self.check.next_state(self.state, collector)
        assert all(tensor.isfinite().all() for tensor in after.weights.values()), "the model is not finite"
        if problem or dropped:
            raise InputError(problem or dropped)

    def pool(self, letter: Letter) -> None:
        """Take the second client's statistics as the server does, and check what they are pooled to."""
        known = wire.statistics_layout(self.context.model)
        honest = {name: self.state.weights[name] for name in known}
        found = wire.read_state(wire.STATISTICS, letter, known)
        problem = self.check.statistics_problem(found)
        if problem:
            raise InputError(problem)
        pool = Pool()
        pool.add(honest, weight=10)
        pool.add(found, weight=10)
        for name, tensor in pool.result().items():
            assert tensor.isfinite().all(), f"{name} is not finite"
            assert "var" not in name or (tensor >= 0).all(), f"{name} is below 0"

    def _update(self, client: int, reply: Reply) -> Update:
        return Update(self.context.clients[client], self.task, reply, 0.1)


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
    known = wire.statistics_layout(MODEL)
    moments, round = {name: full[name] for name in known}, _Round()
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
        Target("round", (_joined(round.letter()),), _letter(round.read)),
        Target("statistics", (_joined(wire.write_state(wire.STATISTICS, moments, known)),), _letter(round.pool)),
        Target("plan", (b'{"0": [0, 2]}', json.dumps({GROUP: [0, 1, 3]}).encode()), _read_plan),
    )
    return {target.name: target for target in found}
