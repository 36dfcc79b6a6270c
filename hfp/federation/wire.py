"""Writes and reads what a message between server and client says: a header of plain JSON, and packed tensors.

Shapes that both sides know from the plan are not sent, and neither is a plan that keeps every channel. In other plans a
coupled group is sent as a window of channels where it is one, and else as one bit per channel. Everything that is read
is checked before it is used, and sizes are checked before anything is allocated.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import math
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hfp.costs.payload import layout, pack, unpack
from hfp.data.partition import FEWEST
from hfp.errors import InputError, printable
from hfp.federation.letter import Letter
from hfp.methods import Client, MethodContext, Reply, State, Task
from hfp.methods.blocks.bits import from_bits, to_bits
from hfp.reconstruct import IndexMap, MapError, Plan
from hfp.training.batch_norm import statistics_names

VERSION = 1
DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float64,
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.int64,
        torch.int32,
        torch.int16,
        torch.int8,
        torch.uint8,
        torch.bool,
        torch.complex64,
    )
}
MOST_DIMENSIONS = 16
MOST_TENSORS = 100_000
LONGEST_NAME = 1_000
MOST_WORDS = 500
MOST_SAMPLES = 10**9
"""Samples that a node may say it has: a client counts by its samples, and more would drown all others."""

LONGEST_HEADER = 16 * 2**20
LONGEST_WORD = 10_000
"""Characters of a header: of any, and of those that describe no tensors. Reading JSON takes 25 times its length."""

FAILED, FORGOTTEN = "failed", "forgotten"
STATISTICS, GLOBAL, KEPT = "statistics", "global", "kept"
FIGURES = ("steps", "samples", "parameters", "forward_macs", "training_macs", "peak_bytes")

Layout = Mapping[str, tuple[torch.Size, torch.dtype]]


def write_task(context: MethodContext, round: int, client: Client, task: Task, has: Iterable[str] = ()) -> Letter:
    """Write a task for a client that still `has` some of what the task takes as known; the rest is sent."""
    again = {name: tensor for name, tensor in task.known.items() if name not in set(has)}
    tensors = {**task.tensors, **again}
    header = {
        "kind": "task",
        "round": round,
        "client": client.index,
        "ratio": client.ratio,
        "plan": _plan_fields(task.plan),
        "values": dict(task.values),
        "known": sorted(task.known),
        **_described(tensors, compact_layout(context, task.index_map)),
    }
    return Letter(_dump(header), pack(tensors))


def read_task(context: MethodContext, letter: Letter, client: int, kept: State) -> tuple[int, float, Task]:
    """Read a task.

    Args:
        context: what stays the same over the run.
        letter: what `write_task` wrote.
        client: who reads it.
        kept: what the client has of earlier rounds.

    Returns:
        The round, the client's ratio and the task.

    Raises:
        InputError: this is no task for the client, or it is damaged.
        Forgotten: the task builds on something that the client no longer has.
    """
    fields = _load(letter.header, "task")
    if _whole(fields, "client") != client:
        raise InputError(f"this is client {client}; found a task for client {fields['client']}")
    try:
        plan = context.groups.plan(_plan_of(fields, context))
        index_map = context.groups.index_map(plan)
    except MapError as error:
        raise InputError(f"the task's plan can't be used: {error}") from error
    tensors = unpack(letter.body, _layout_of(fields, compact_layout(context, index_map), len(letter.body)))
    values = {_text(name): _number(value, name) for name, value in _mapping(fields, "values").items()}
    known = {_text(name) for name in _sequence(fields, "known")}
    forgotten = known - kept.keys() - tensors.keys()
    if forgotten:
        raise Forgotten(f"the task builds on {', '.join(sorted(forgotten))}, which this client doesn't have")
    here = {name: tensors.pop(name) if name in tensors else kept[name] for name in sorted(known)}
    ratio = _number(fields.get("ratio"), "ratio")
    return _whole(fields, "round"), ratio, Task(plan, index_map, tensors, values, here)


class Forgotten(InputError):
    """A client lacks something that a task takes as known, so that the server sends it again."""


def write_reply(
    context: MethodContext, round: int, client: Client, task: Task, reply: Reply, kept: Iterable[str] = ()
) -> Letter:
    """What a client answers to a task of a round, and the names of what it keeps for later ones."""
    header = {
        "kind": "reply",
        "round": round,
        "client": client.index,
        "figures": {
            field.name: getattr(reply, field.name) for field in dataclasses.fields(Reply) if field.name != "tensors"
        },
        "kept": sorted(kept),
        **_described(reply.tensors, compact_layout(context, task.index_map)),
    }
    return Letter(_dump(header), pack(reply.tensors))


def read_reply(
    context: MethodContext, round: int, client: Client, task: Task, letter: Letter
) -> tuple[Reply, frozenset[str]]:
    """A client's reply to its task of a round, and what the client keeps.

    Raises:
        InputError: this is no reply to the task, or it is damaged.
    """
    fields = _load(letter.header, "reply", most=_longest_reply(context))
    for name, expected in (("round", round), ("client", client.index)):
        if _whole(fields, name) != expected:
            raise InputError(f"expected the reply of {name} {expected}; found one of {name} {fields[name]}")
    tensors = unpack(letter.body, _layout_of(fields, compact_layout(context, task.index_map), len(letter.body)))
    figures = _mapping(fields, "figures")
    variance = figures.get("variance")
    reply = Reply(
        tensors=tensors,
        loss=_number(figures.get("loss"), "loss"),
        variance=None if variance is None else _number(variance, "variance"),
        **{name: _whole(figures, name) for name in FIGURES},
    )
    return reply, frozenset(_text(name) for name in _sequence(fields, "kept"))


def write_failure(kind: str, problem: str) -> Letter:
    """Write that a client can't answer, and why; `kind` is `FAILED` or `FORGOTTEN`."""
    return Letter(_dump({"kind": kind, "problem": problem[:MOST_WORDS]}))


def failure_in(letter: Letter) -> tuple[str, str] | None:
    """Return the kind of failure and the client's words, fit to be shown; None where the letter is something else."""
    for kind in (FAILED, FORGOTTEN):
        try:
            said = _load(letter.header, kind, most=LONGEST_WORD).get("problem")
            return kind, printable(said[:MOST_WORDS]) if isinstance(said, str) else ""
        except InputError:
            continue
    return None


def write_hello(client: int, samples: int, architecture: str) -> Letter:
    """Write what a node says of itself when it is first asked."""
    return Letter(_dump({"kind": "hello", "client": client, "samples": samples, "digest": architecture}))


def read_hello(letter: Letter) -> tuple[int, int, str]:
    """Read which client a node is, how many samples it has, and the `digest` of its model.

    Raises:
        InputError: this is no such message.
    """
    fields = _load(letter.header, "hello", most=LONGEST_WORD)
    samples = _whole(fields, "samples")
    if not FEWEST <= samples <= MOST_SAMPLES:
        raise InputError(f"samples must be between {FEWEST} and {MOST_SAMPLES}; found {samples}")
    return _whole(fields, "client"), samples, _text(fields.get("digest"))


def write_state(kind: str, state: State, known: Layout) -> Letter:
    """Write tensors alone: the global model for a client, or a client's statistics for the server."""
    return Letter(_dump({"kind": kind, **_described(state, known)}), pack(state))


def read_state(kind: str, letter: Letter, known: Layout) -> dict[str, Tensor]:
    """Read the tensors that `write_state` was given, which must be those of `known`.

    Raises:
        InputError: others, damaged ones, or values that are not finite.
    """
    fields = _load(letter.header, kind)
    expected = _layout_of(fields, known, len(letter.body))
    if expected != known:
        raise InputError(f"{kind} must have {len(known)} tensors of known shapes; found others")
    state = unpack(letter.body, known)
    for name, tensor in state.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise InputError(f"{name} holds values that are not finite")
    return state


def read_own_state(kind: str, letter: Letter) -> dict[str, Tensor]:
    """Read tensors of any shapes, as the header describes them, which a client itself has written.

    Raises:
        InputError: the letter is damaged.
    """
    fields = _load(letter.header, kind)
    return unpack(letter.body, _layout_of(fields, {}, len(letter.body)))


def compact_layout(context: MethodContext, index_map: IndexMap) -> Layout:
    """Return the shape and dtype of every tensor of a compact model."""
    full = context.model.state_dict()
    return {name: (torch.Size(place.compact_shape), full[name].dtype) for name, place in index_map.tensors.items()}


def statistics_layout(model: nn.Module) -> Layout:
    """Return the shape and dtype of a full model's batch-norm statistics, as a client sends them."""
    state = model.state_dict()
    return layout({name: state[name] for name in statistics_names(model)})


def digest(context: MethodContext, state: State) -> str:
    """Return a hash of the architecture's names, shapes and coupled groups, which both sides must have in common."""
    tensors = [f"{name} {list(tensor.shape)} {tensor.dtype}" for name, tensor in state.items()]
    groups = [f"{name} {size}" for name, size in context.groups.sizes.items()]
    return hashlib.sha256("\n".join([*tensors, *groups]).encode()).hexdigest()[:16]


def _described(tensors: State, known: Layout) -> dict[str, Any]:
    """Describe tensors by how many of the first are as known, and the name, dtype and shape of all others."""
    found = layout(tensors)
    same = bool(known) and list(found.items())[: len(known)] == list(known.items())
    others = list(found.items())[len(known) if same else 0 :]
    return {
        "as_known": same,
        "tensors": [[name, str(dtype).removeprefix("torch."), list(shape)] for name, (shape, dtype) in others],
    }


def _layout_of(fields: Mapping[str, Any], known: Layout, size: int) -> dict[str, tuple[torch.Size, torch.dtype]]:
    found = dict(known) if fields.get("as_known") is True else {}
    listed = _sequence(fields, "tensors")
    if len(listed) > MOST_TENSORS:
        raise InputError(f"at most {MOST_TENSORS} tensors can be sent; found {len(listed)}")
    for entry in listed:
        if not isinstance(entry, list) or len(entry) != 3 or not isinstance(entry[2], list):
            raise InputError(f"a tensor is described by name, dtype and shape; found {_shown(entry)}")
        name, dtype, shape = _text(entry[0]), DTYPES.get(_text(entry[1])), entry[2]
        if name in found:
            raise InputError(f"{name} is described twice")
        if dtype is None:
            raise InputError(f"{name}: dtype must be one of {', '.join(DTYPES)}; found {_shown(entry[1])}")
        if len(shape) > MOST_DIMENSIONS or not all(_is_whole(side) and side <= size for side in shape):
            raise InputError(f"{name}: expected at most {MOST_DIMENSIONS} sides of 0 or more; found {_shown(shape)}")
        found[name] = torch.Size(shape), dtype
    bytes_needed = sum(math.prod(shape) * dtype.itemsize for shape, dtype in found.values())
    if bytes_needed > size:
        raise InputError(f"the header speaks of {bytes_needed} bytes of tensors; the body has {size}")
    return found


def _plan_fields(plan: Plan) -> dict[str, Any]:
    return {name: _channels(kept, plan.sizes[name]) for name, kept in plan.kept.items() if len(kept) < plan.sizes[name]}


def _channels(kept: Sequence[int], size: int) -> list[int] | str:
    if kept[-1] - kept[0] + 1 == len(kept):
        return [kept[0], len(kept)]
    mask = torch.zeros(size, dtype=torch.bool)
    mask[list(kept)] = True
    return base64.b64encode(to_bits(mask).numpy().tobytes()).decode()


def _plan_of(fields: Mapping[str, Any], context: MethodContext) -> dict[str, Tensor]:
    plan = {}
    for name, channels in _mapping(fields, "plan").items():
        size = context.groups.sizes.get(name)
        if size is None:
            raise InputError(f"the plan names the coupled group {name[:80]!r}, which this model doesn't have")
        plan[name] = _kept(channels, size, name)
    return plan


def _kept(channels: Any, size: int, name: str) -> Tensor:
    if isinstance(channels, list) and len(channels) == 2 and all(_is_whole(part) for part in channels):
        start, count = channels
        if start + count <= size:
            return torch.arange(start, start + count)
    if isinstance(channels, str) and len(channels) <= size + 4:
        try:
            packed = bytearray(base64.b64decode(channels, validate=True))
            return from_bits(torch.frombuffer(packed, dtype=torch.uint8), (size,)).nonzero().view(-1)
        except ValueError as error:
            raise InputError(f"{name}: channels can't be read: {error}") from error
    raise InputError(f"{name}: expected a window or bits of {size} channels; found {_shown(channels)}")


def _dump(fields: Mapping[str, Any]) -> str:
    return json.dumps({"version": VERSION, **fields}, separators=(",", ":"))


def _longest_reply(context: MethodContext) -> int:
    """Characters that the header of a reply may have: enough to describe each of the model's tensors four times."""
    return LONGEST_WORD + 4 * sum(len(name) + 100 for name in context.model.state_dict())


def _load(header: str, kind: str, most: int = LONGEST_HEADER) -> dict[str, Any]:
    if len(header) > most:
        raise InputError(f"the header of a message of kind {kind!r} has at most {most} characters; found {len(header)}")
    try:
        fields = json.loads(header)
    except (ValueError, RecursionError) as error:
        raise InputError(f"a header of {len(header)} characters is no JSON") from error
    if not isinstance(fields, dict) or fields.get("kind") != kind:
        raise InputError(f"expected a message of kind {kind!r}; found {header[:80]!r}")
    if fields.get("version") != VERSION:
        raise InputError(
            f"expected version {VERSION} of the messages; found {_shown(fields.get('version'))}: update hfp"
        )
    return fields


def _mapping(fields: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = fields.get(name)
    if not isinstance(value, dict):
        raise InputError(f"{name} must be an object; found {_shown(value)}")
    return value


def _sequence(fields: Mapping[str, Any], name: str) -> list[Any]:
    value = fields.get(name)
    if not isinstance(value, list):
        raise InputError(f"{name} must be a list; found {_shown(value)}")
    return value


def _whole(fields: Mapping[str, Any], name: str) -> int:
    value = fields.get(name)
    if not _is_whole(value):
        raise InputError(f"{name} must be a whole number of 0 or more; found {_shown(value)}")
    return int(value)  # type: ignore[arg-type]


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _number(value: Any, name: str) -> float:
    plain = isinstance(value, (int, float)) and not isinstance(value, bool)
    try:
        number = float(value) if plain else math.nan
    except OverflowError:  # a whole number of hundreds of digits
        number = math.inf
    if not math.isfinite(number):
        raise InputError(f"{name} must be a finite number; found {_shown(value)}")
    return number


def _text(value: Any) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= LONGEST_NAME or not value.isprintable():
        raise InputError(f"a name must be a text of at most {LONGEST_NAME} printable characters; found {_shown(value)}")
    return value


def _shown(value: Any) -> str:
    """A value of a message in a few words, however large or deep it is."""
    return reprlib.repr(value)[:80]
