"""What is written is read back; what is not what it should be is refused with a reason, before it is used."""

import base64
import json
import math

import pytest
import torch
from federated import begin, context_of, local_of, small_network
from hypothesis import given
from hypothesis import strategies as st

from hfp import InputError
from hfp.costs.payload import pack
from hfp.federation import wire
from hfp.federation.letter import Letter
from hfp.methods import Reply, Task, create_method

MODEL = small_network()
SETTING = context_of(MODEL)
CLIENT = SETTING.clients[1]
STATE = {name: tensor.clone() for name, tensor in MODEL.state_dict().items()}


@st.composite
def plans(draw):
    kept = {}
    for name, size in SETTING.groups.sizes.items():
        flags = draw(st.lists(st.booleans(), min_size=size, max_size=size).filter(any))
        kept[name] = [channel for channel, flag in enumerate(flags) if flag]
    return SETTING.groups.plan(kept)


def task_of(plan, values=None, known=None):
    index_map = SETTING.groups.index_map(plan)
    return Task(plan, index_map, index_map.restrict(STATE), values or {}, known or {})


def assert_same_tensors(found, expected):
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


@given(plan=plans(), value=st.floats(allow_nan=False, allow_infinity=False))
def test_a_task_arrives_as_it_was_sent(plan, value):
    task = task_of(plan, {"share": value})
    letter = wire.write_task(SETTING, 7, CLIENT, task)
    round, ratio, read = wire.read_task(SETTING, letter, CLIENT.index, {})
    assert (round, ratio, dict(read.values)) == (7, CLIENT.ratio, {"share": value})
    assert read.plan == task.plan
    assert read.index_map == task.index_map
    assert_same_tensors(read.tensors, task.tensors)


def test_shapes_and_whole_groups_are_not_sent_and_bits_are_a_bit_a_channel():
    whole = wire.write_task(SETTING, 0, CLIENT, task_of(SETTING.groups.plan({})))
    assert json.loads(whole.header)["plan"] == {}
    assert json.loads(whole.header)["tensors"] == []
    name, size = next(iter(SETTING.groups.sizes.items()))
    window = wire.write_task(SETTING, 0, CLIENT, task_of(SETTING.groups.plan({name: range(2, 5)})))
    assert json.loads(window.header)["plan"] == {name: [2, 3]}
    some = wire.write_task(SETTING, 0, CLIENT, task_of(SETTING.groups.plan({name: [0, size - 1]})))
    assert len(base64.b64decode(json.loads(some.header)["plan"][name])) == math.ceil(size / 8)


@pytest.mark.parametrize("name", ["ca-hfp", "dapperfl", "heterofl", "prunefl"])
def test_real_replies_arrive_as_they_were_sent(name):
    method = create_method(name, **({"passes": 1, "limit": 1} if name == "prunefl" else {}))
    state = begin(MODEL, method, SETTING)
    task = method.send(SETTING, state, CLIENT, method.plan(SETTING, state, CLIENT))
    reply = method.train(local_of(MODEL, SETTING, CLIENT), task)
    letter = wire.write_reply(SETTING, 3, CLIENT, task, reply, ["mask"])
    read, kept = wire.read_reply(SETTING, 3, CLIENT, task, letter)
    assert kept == {"mask"}
    assert_same_tensors(read.tensors, reply.tensors)
    assert {**vars(read), "tensors": None} == {**vars(reply), "tensors": None}


def test_what_a_client_has_is_not_sent_again_and_missed_where_it_hasnt():
    plan, mask = SETTING.groups.plan({}), torch.arange(5, dtype=torch.uint8)
    task = task_of(plan, known={"mask": mask})
    sent = wire.write_task(SETTING, 0, CLIENT, task, has=["mask"])
    again = wire.write_task(SETTING, 0, CLIENT, task)
    assert len(sent.body) < len(again.body)
    assert torch.equal(wire.read_task(SETTING, sent, CLIENT.index, {"mask": mask})[2].known["mask"], mask)
    assert torch.equal(wire.read_task(SETTING, again, CLIENT.index, {})[2].known["mask"], mask)
    with pytest.raises(wire.Forgotten, match="builds on mask, which this client doesn't have"):
        wire.read_task(SETTING, sent, CLIENT.index, {})


GROUP, SIZE = next(iter(SETTING.groups.sizes.items()))
TASK = task_of(SETTING.groups.plan({GROUP: [0, 2]}))
LETTER = wire.write_task(SETTING, 0, CLIENT, TASK)


def changed(letter=LETTER, body=None, **fields):
    header = {**json.loads(letter.header), **fields}
    return Letter(json.dumps(header), letter.body if body is None else body)


@pytest.mark.parametrize(
    ("letter", "reason"),
    [
        (Letter("no"), "is no JSON"),
        (Letter("[" * 100_000), "is no JSON"),
        (Letter("[]"), "expected a message of kind 'task'"),
        (changed(kind="reply"), "expected a message of kind 'task'"),
        (changed(version=2), "expected version 1 of the messages; found 2"),
        (changed(client=0), "this is client 1; found a task for client 0"),
        (changed(client=True), "client must be a whole number"),
        (changed(round=-1), "round must be a whole number"),
        (changed(ratio="half"), "ratio must be a finite number"),
        (changed(values={"share": math.inf}), "share must be a finite number"),
        (changed(values=[]), "values must be an object"),
        (changed(plan={"nothing": [0, 1]}), "which this model doesn't have"),
        (changed(plan={GROUP: [SIZE - 1, 2]}), "expected a window or bits"),
        (changed(plan={GROUP: [0, 0]}), "plan can't be used"),
        (changed(plan={GROUP: "A" * 9999}), "expected a window or bits"),
        (changed(plan={GROUP: "A"}), "channels can't be read"),
        (changed(plan={GROUP: "AAAA"}), "bits in"),
        (changed(plan={GROUP: 3}), "expected a window or bits"),
        (changed(tensors=[["x", "float32"]]), "described by name, dtype and shape"),
        (changed(tensors=[["x", "object", []]]), "dtype must be one of"),
        (changed(tensors=[["x", "float32", [2**40, 2**40]]]), "expected at most 16 sides"),
        (changed(tensors=[["x", "float32", [99999, 99999]]]), "speaks of|expected at most"),
        (changed(tensors=[["x", "float32", [1, -1]]]), "expected at most 16 sides"),
        (changed(tensors=[["x", "float32", [1] * 99]]), "expected at most 16 sides"),
        (changed(tensors=[["stem.0.weight", "float32", []]]), "described twice"),
        (changed(tensors=[["x" * 5000, "float32", []]]), "a name must be a text"),
        (changed(tensors=7), "tensors must be a list"),
        (changed(as_known=False), "must hold"),
        (changed(body=b""), "speaks of"),
        (changed(body=LETTER.body[:-8]), "can't be read|speaks of"),
        (changed(body=bytes(len(LETTER.body))), "can't be read"),
        (changed(body=pack(STATE)), "must hold"),
    ],
)
def test_hostile_tasks_are_refused(letter, reason):
    with pytest.raises(InputError, match=reason):
        wire.read_task(SETTING, letter, CLIENT.index, {})


REPLY = wire.write_reply(SETTING, 0, CLIENT, TASK, Reply(TASK.tensors, 1, 2, 0.5, 3, 4, 5))


@pytest.mark.parametrize(
    ("figures", "reason"),
    [
        ({"steps": -1}, "steps must be a whole number"),
        ({"steps": 2**80}, "steps must be a whole number"),
        ({"samples": 1.5}, "samples must be a whole number"),
        ({"loss": None}, "loss must be a finite number"),
        ({"loss": math.nan}, "loss must be a finite number"),
        ({"variance": "x"}, "variance must be a finite number"),
    ],
)
def test_replies_of_strange_figures_are_refused(figures, reason):
    fields = json.loads(REPLY.header)
    letter = changed(REPLY, figures={**fields["figures"], **figures})
    with pytest.raises(InputError, match=reason):
        wire.read_reply(SETTING, 0, CLIENT, TASK, letter)


def test_statistics_are_of_known_shapes_and_finite():
    known = wire.statistics_layout(MODEL)
    moments = {name: STATE[name] for name in known}
    letter = wire.write_state(wire.STATISTICS, moments, known)
    assert_same_tensors(wire.read_state(wire.STATISTICS, letter, known), moments)
    first = next(iter(moments))
    with pytest.raises(InputError, match=f"{first} holds values that are not finite"):
        bad = {**moments, first: moments[first] * math.nan}
        wire.read_state(wire.STATISTICS, wire.write_state(wire.STATISTICS, bad, known), known)
    with pytest.raises(InputError, match="must have 18 tensors of known shapes"):
        fewer = {name: tensor for name, tensor in moments.items() if name != first}
        wire.read_state(wire.STATISTICS, wire.write_state(wire.STATISTICS, fewer, known), known)


def test_complex_values_arrive_as_they_were_sent():
    pytest.importorskip("safetensors", minversion="0.7.0", reason="earlier versions write no complex numbers")
    sent = {"spectrum": torch.randn(3, dtype=torch.complex64), "weight": torch.randn(2)}
    found = wire.read_own_state("done", wire.write_state("done", sent, {}))
    assert all(torch.equal(found[name], tensor) for name, tensor in sent.items())
