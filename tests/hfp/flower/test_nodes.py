"""What the server makes of nodes that are late, broken, gone or lying; and runs that are taken up again."""

import collections
import json
import random
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mutations import mutated

pytest.importorskip("flwr")

from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict
from flwr.proto.node_pb2 import NodeInfo
from inline_grid import InlineGrid
from runs import timeless
from safetensors.torch import load, save

from hfp import InputError
from hfp.federation import wire
from hfp.federation.letter import Letter
from hfp.flower import client, conversation, nodes, post, server
from hfp.flower.keys import make_node_key, public_keys
from hfp.flower.letter import BODY, HEADER, from_records, to_records
from hfp.flower.nodes import Nodes, QuorumError
from hfp.flower.settings import Settings
from hfp.reconstruct import IndexMap
from hfp.results.checkpoint import load_checkpoint
from hfp.results.files import CHECKPOINT


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    """Whoever sleeps in this file's tests finds the time gone by at once."""
    clock = SimpleNamespace(now=0.0)

    def sleep(seconds):
        clock.now += seconds

    still = SimpleNamespace(monotonic=lambda: clock.now, sleep=sleep)
    for module in (conversation, nodes, post):
        monkeypatch.setattr(module, "time", still)


def config_of(method="fedavg", clients=3, rounds=2, **changes):
    quick = {"train-images": 30 * clients, "batch-norm": "aggregate", "head-start": 1}
    return {"method": method, "clients": clients, "rounds": rounds, **quick, **changes}


def grid_of(config, order=list):
    return InlineGrid(client.app, config["clients"], config, order)


def run_on(grid, config, folder, **settings):
    said = []
    quick = {"wait": 0.5, "round_timeout": 30.0, **settings}
    run = server.run(grid, server.experiment_from(config), Settings(out=str(folder), **quick), say=said.append)
    return run, said


def statuses(record):
    return {one.client: one.status for one in record.clients}


def test_a_silent_node_is_left_out_when_the_round_ends_and_what_it_alone_held_stays(tmp_path):
    config = config_of("ca-hfp-paper", rounds=1, ratio="0.5")
    initial = server.set_up(server.experiment_from(config))
    grid = grid_of(config)
    held = {}
    state = initial.method.start(initial.context, initial.initial)
    for one in initial.context.clients:
        plan = initial.method.plan(initial.context, state, one)
        held[one.index] = initial.context.groups.index_map(plan).masks()

    grid.silent_in = {"train"}
    grid.silent = {1001}
    run, said = run_on(grid, config, tmp_path / "run")
    assert statuses(run.history[0]) == {0: "in time", 1: "dropped", 2: "in time"}
    assert "no answer when the round ended" in run.history[0].clients[1].problem
    assert any("client 1: dropped" in line for line in said)
    moved = 0
    for name in initial.context.parameters:
        lost = held[1][name] & ~held[0][name] & ~held[2][name]
        assert torch.equal(run.global_state[name][lost], initial.initial[name][lost])
        moved += int((run.global_state[name] != initial.initial[name]).sum())
    assert moved > 0


def test_a_node_that_owes_an_answer_is_sent_nothing(tmp_path):
    config = config_of(rounds=2)
    grid = grid_of(config)
    grid.silent_in, grid.silent = {"train"}, {1001}
    run, _ = run_on(grid, config, tmp_path / "run", quorum=2)
    assert statuses(run.history[0]) == {0: "in time", 1: "dropped", 2: "in time"}
    assert statuses(run.history[1]) == {0: "in time", 2: "in time"}


def test_a_node_that_left_comes_back_under_another_id_and_is_used(tmp_path):
    config = config_of(rounds=3)
    grid = grid_of(config)
    answered = grid.pull_messages

    def pull(identities):
        replies = list(answered(identities))
        rounds = len([1 for kind, *_ in grid.sizes if kind == "train"])
        if rounds == 3 and 1001 in grid.get_node_ids():
            grid.leave(1001)
        if rounds == 5 and 2001 not in grid.get_node_ids():
            grid.join(2001, 1, 3)
        return replies

    grid.pull_messages = pull
    run, _ = run_on(grid, config, tmp_path / "run", quorum=2)
    assert [sorted(statuses(record)) for record in run.history] == [[0, 1, 2], [0, 2], [0, 1, 2]]


def letter_with(message, **fields):
    return Message(to_records(Letter(json.dumps({"version": 1, **fields}))), reply_to=message)


def honest(message, app, context, change):
    letter = from_records(app(message, context).content)
    return Message(to_records(change(letter)), reply_to=message)


def with_body(letter, body):
    return Letter(letter.header, body)


GARBAGE = {
    "nothing": (lambda m, _: Message(RecordDict(), reply_to=m), "refused", "no header"),
    "no json": (lambda m, _: Message(to_records(Letter("{")), reply_to=m), "refused", "no JSON"),
    "another kind": (lambda m, _: letter_with(m, kind="hello"), "refused", "expected a message of kind 'reply'"),
    "another version": (lambda m, _: letter_with(m, kind="reply", version=9), "refused", "expected version 1"),
    "floats": (
        lambda m, _: Message(
            RecordDict(
                {
                    HEADER: ConfigRecord({HEADER: "{}"}),
                    BODY: ArrayRecord({BODY: Array(torch.zeros(3).numpy())}),
                }
            ),
            reply_to=m,
        ),
        "refused",
        "row of",
    ),
    "pickle": (
        lambda m, _: Message(
            RecordDict(
                {
                    HEADER: ConfigRecord({HEADER: "{}"}),
                    BODY: ArrayRecord({BODY: Array("uint8", (3,), "numpy.ndarray", b"\x80\x04K\x01.")}),
                }
            ),
            reply_to=m,
        ),
        "refused",
        "can't be read",
    ),
    "cut short": (lambda m, run: honest(m, *run, lambda one: with_body(one, one.body[:-100])), "refused", "bytes"),
    "noise": (
        lambda m, run: honest(m, *run, lambda one: with_body(one, bytes(len(one.body)))),
        "refused",
        "can't be read",
    ),
    "not a number": (
        lambda m, run: honest(
            m, *run, lambda one: with_body(one, one.body[:-4000] + b"\xff" * 4000 if one.body else one.body)
        ),
        "refused",
        "not finite",
    ),
    "raises": (lambda m, _: 1 / 0, "failed", "division by zero"),
    "words for no terminal": (
        lambda m, _: letter_with(m, kind="failed", problem="\ud800\x1b[2J"),
        "failed",
        r"\ud800\x1b",
    ),
    "an error for no terminal": (lambda m, _: Message(Error(2, "\x1b[2J"), reply_to=m), "failed", r"\x1b[2J"),
    "names for no terminal": (
        lambda m, _: letter_with(
            m, kind="reply", round=0, client=len(GARBAGE), tensors=[["\ud800", "int8", [0]]], figures={}, kept=[]
        ),
        "refused",
        "printable",
    ),
}


def test_garbage_is_refused_recorded_and_changes_nothing(tmp_path):
    config = config_of(rounds=1, clients=1 + len(GARBAGE))
    grid = grid_of(config)

    def breaking(node, make):
        context = grid._contexts[node]
        return lambda message: make(message, (client.app, context))

    for node, (make, _, _) in enumerate(GARBAGE.values(), start=1001):
        grid.broken[node] = breaking(node, make)
    run, said = run_on(grid, config, tmp_path / "run")
    wanted = {client: status for client, (_, status, _) in enumerate(GARBAGE.values(), start=1)}
    assert statuses(run.history[0]) == {0: "in time", **wanted}
    problems = {one.client: one.problem for one in run.history[0].clients}
    for client_index, (kind, (_, _, reason)) in enumerate(GARBAGE.items(), start=1):
        assert reason in problems[client_index], kind
    assert all(line.isprintable() for line in said)
    assert all(tensor.isfinite().all() for tensor in run.global_state.values())


def test_too_few_nodes_stop_the_run_with_its_state_saved_and_it_goes_on_as_if_uninterrupted(tmp_path):
    config = config_of("ca-hfp", rounds=3, options="warmup=1", ratio="0.25,0.5,0.5")
    whole, _ = run_on(grid_of(config), config, tmp_path / "whole")
    grid = grid_of(config)
    answered = grid.pull_messages

    def pull(identities):
        replies = list(answered(identities))
        if len([1 for kind, *_ in grid.sizes if kind == "train"]) == 6:
            for node in [1001, 1002]:
                if node in grid.get_node_ids():
                    grid.leave(node)
        return replies

    grid.pull_messages = pull
    with pytest.raises(QuorumError, match="1 of the 2 nodes that a round needs"):
        run_on(grid, config, tmp_path / "part", quorum=2)
    assert len(load_checkpoint(tmp_path / "part").history) == 2
    again, _ = run_on(grid_of(config), config, tmp_path / "ignored", resume=str(tmp_path / "part"))
    assert timeless(again.history) == timeless(whole.history)
    for name, tensor in whole.global_state.items():
        assert torch.equal(again.global_state[name], tensor)
    assert len((tmp_path / "part" / "metrics.jsonl").read_text().splitlines()) == 3


def test_a_checkpoint_of_another_experiment_is_refused(tmp_path):
    config = config_of(rounds=1, clients=2)
    run_on(grid_of(config), config, tmp_path / "run")
    with pytest.raises(InputError, match="is of another experiment: it has seed 0"):
        run_on(grid_of(config), {**config, "seed": 1}, tmp_path / "x", resume=str(tmp_path / "run"))


def test_a_run_that_another_process_has_taken_up_is_left_alone(tmp_path):
    config = config_of(rounds=2, clients=2)
    grid = grid_of(config)
    answered = grid.pull_messages

    def pull(identities):
        path = tmp_path / "run" / CHECKPOINT
        if path.exists() and path.read_bytes() != b"another's":
            path.write_bytes(b"another's")
        return answered(identities)

    grid.pull_messages = pull
    with pytest.raises(InputError, match="another process goes on with the run"):
        run_on(grid, config, tmp_path / "run")
    assert (tmp_path / "run" / CHECKPOINT).read_bytes() == b"another's"


def during_round(grid, number, action):
    """Call `action` once, when answers of the run's round `number` (from 1) are first asked for."""
    answered, waiting = grid.pull_messages, [action]

    def pull(identities):
        if waiting and action.ready(number):
            waiting.pop()()
        return answered(identities)

    grid.pull_messages = pull


class Meanwhile:
    """Something that is done once a run's folder has so many rounds."""

    def __init__(self, folder, then):
        self.folder, self.then, self.came = folder, then, []

    def ready(self, number):
        path = self.folder / "metrics.jsonl"
        return len(path.read_text().splitlines() if path.exists() else []) >= number - 1 and self.folder.exists()

    def __call__(self):
        self.came.append(self.then())


def test_a_second_run_is_kept_out_of_a_folder_in_which_one_has_begun(tmp_path):
    config = config_of(rounds=1, clients=2)

    def another():
        with pytest.raises(InputError, match="another process is writing to"):
            run_on(grid_of(config), config, tmp_path / "run")

    grid, action = grid_of(config), Meanwhile(tmp_path / "run", another)
    during_round(grid, 1, action)
    run, _ = run_on(grid, config, tmp_path / "run")
    assert len(action.came) == len(run.history) == 1


def test_a_server_whose_run_is_resumed_elsewhere_writes_nothing_more(tmp_path):
    config, folder = config_of(rounds=3, clients=2), tmp_path / "run"
    whole, _ = run_on(grid_of(config), config, tmp_path / "whole")
    action = Meanwhile(folder, lambda: run_on(grid_of(config), config, tmp_path / "x", resume=str(folder))[0])
    grid = grid_of(config)
    during_round(grid, 2, action)
    with pytest.raises(InputError, match="another process goes on with the run"):
        run_on(grid, config, folder)
    (resumed,) = action.came
    assert timeless(resumed.history) == timeless(whole.history)
    written = [json.loads(line)["round"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert written == [1, 2, 3]
    assert (folder / "global.safetensors").read_bytes() == (tmp_path / "whole/global.safetensors").read_bytes()


def test_prunefls_mask_is_sent_once_and_again_to_a_node_that_lost_it(tmp_path):
    config = config_of("prunefl", clients=2, rounds=4, options="passes=1 limit=1 every=50")
    plain, _ = run_on(grid_of(config), config, tmp_path / "plain")
    grid = grid_of(config)
    answered = grid.pull_messages

    def pull(identities):
        if len([1 for kind, *_ in grid.sizes if kind == "train"]) == 5:
            for context in grid._contexts.values():
                context.state.clear()
        return answered(identities)

    grid.pull_messages = pull
    run, _ = run_on(grid, config, tmp_path / "run")
    down = [[one.bytes_down for one in record.clients] for record in plain.history]
    assert down[3][0] < down[1][1]
    more = sum(record.bytes_down for record in run.history) - sum(record.bytes_down for record in plain.history)
    assert more > 0
    for name, tensor in plain.global_state.items():
        assert torch.equal(run.global_state[name], tensor)


def test_few_tasks_are_out_at_once_where_that_is_asked(tmp_path):
    config = config_of(rounds=1, clients=5)
    grid = grid_of(config)
    pushed, most = grid.push_messages, []

    def push(messages):
        sent = pushed(messages)
        most.append(len(grid._pending))
        return sent

    grid.push_messages = push
    run, _ = run_on(grid, config, tmp_path / "run", in_flight=2)
    assert max(most[5:]) == 2
    assert set(statuses(run.history[0]).values()) == {"in time"}


def test_nodes_of_another_partition_or_number_are_not_used(tmp_path):
    config = config_of(rounds=1, clients=2)
    grid = grid_of(config)
    grid.join(3000, 0, 2)
    grid.join(3001, 1, 7)
    run, said = run_on(grid, config, tmp_path / "run")
    assert set(statuses(run.history[0]).values()) == {"in time"}
    assert any("node 3000 can't take part: it is partition 0, which another node is already" in line for line in said)
    assert any("this node is partition 1 of 7" in line for line in said)


class KeyedGrid(InlineGrid):
    """Says of some nodes with which public key they are registered."""

    keys = {}

    def get_nodes(self):
        return [NodeInfo(node_id=node, public_key=self.keys.get(node, b"")) for node in self.get_node_ids()]


def test_a_client_with_a_key_is_the_node_with_that_key_whoever_comes_first(tmp_path):
    config = config_of(rounds=1, clients=2)
    for number in range(2):
        make_node_key(tmp_path / f"node-{number}")
    keys = public_keys(tmp_path, 2)
    grid = KeyedGrid(client.app, 2, config)
    grid.join(999, 0, 2)  # asked before the others, for its number is the smallest
    grid.keys = {999: b"another", 1000: keys[0] + b"\n", 1001: keys[1]}
    run, said = run_on(grid, config, tmp_path / "run", keys=str(tmp_path))
    assert statuses(run.history[0]) == {0: "in time", 1: "in time"}
    assert any("node 999 can't take part: it says that it is partition 0, but has not the key" in line for line in said)
    trained = {node for kind, node, *_ in grid.sizes if kind == "train"}
    assert trained == {1000, 1001}


class FalteringGrid(KeyedGrid):
    """Fails at every second question of a kind."""

    def __init__(self, *given):
        super().__init__(*given)
        self.asked = collections.Counter()

    def falter(self, question):
        self.asked[question] += 1
        if self.asked[question] % 2:
            raise ConnectionError(f"no {question} for now")

    def get_node_ids(self):
        self.falter("ids")
        return super().get_node_ids()

    def get_nodes(self):
        self.falter("keys")
        return [NodeInfo(node_id=node, public_key=key) for node, key in self.keys.items()]


def test_a_grid_that_can_not_be_asked_for_a_while_is_asked_again(tmp_path):
    for number in range(2):
        make_node_key(tmp_path / f"node-{number}")
    grid, said = FalteringGrid(client.app, 2, config_of(clients=2)), []
    grid.keys = dict(zip((1000, 1001), public_keys(tmp_path, 2), strict=True))
    nodes = Nodes(grid, Settings(keys=str(tmp_path), wait=30.0), 2, said.append)
    nodes.gather(everyone=True)
    assert nodes.free() == {0, 1}
    assert not any("can't take part" in line for line in said)
    for problem in ("nodes could not be listed: ConnectionError: no ids", "keys could not be read: ConnectionError"):
        assert any(problem in line for line in said)


def test_a_missing_key_is_refused_before_the_run_begins(tmp_path):
    config = config_of(rounds=1, clients=2)
    with pytest.raises(InputError, match="client 0 needs a public key in OpenSSH's format in .*node-0.pub"):
        run_on(grid_of(config), config, tmp_path / "run", keys=str(tmp_path))


def lying(grid, node, change):
    """Have a node change every letter that it answers to a task with."""
    grid.broken[node] = lambda message: honest(message, client.app, grid._contexts[node], change)


def with_figures(**figures):
    def change(letter):
        fields = json.loads(letter.header)
        return Letter(json.dumps({**fields, "figures": {**fields["figures"], **figures}}), letter.body)

    return change


def relabelled(letter, **entry):
    """The letter with another description of its float32 values in the body."""
    length = int.from_bytes(letter.body[:8], "little")
    header = json.loads(letter.body[8 : 8 + length])
    header["float32"].update({name: change(header["float32"]) for name, change in entry.items()})
    changed = json.dumps(header).encode()
    return Letter(letter.header, len(changed).to_bytes(8, "little") + changed + letter.body[8 + length :])


def with_values(value):
    def change(letter):
        tensors = load(letter.body)
        tensors["float32"][:5] = value
        return Letter(letter.header, save(tensors))

    return change


LIES = {
    "a body in another shape": (lambda one: relabelled(one, shape=lambda e: [1, *e["shape"]]), "must hold"),
    "a dtype that torch has not": (lambda one: relabelled(one, dtype=lambda _: "F8_E8M0"), "can't be read"),
    "a loss of 401 digits": (with_figures(loss=10**400), "loss must be a finite number"),
    "a loss beyond float32": (with_figures(loss=1e308), "loss must be finite and at most"),
    "no work": (with_figures(training_macs=0, steps=0, samples=0), "by what the client holds; found 0"),
    "no memory": (with_figures(peak_bytes=0), "peak_bytes must be between 1 and"),
    "work without end": (with_figures(training_macs=2**63 - 1), "training_macs must be between"),
    "samples it has not": (with_figures(samples=2**62), "samples must be between"),
    "weights that overflow a score": (with_values(1e30), "must hold values up to"),
    "weights that overflow a mean": (with_values(3.4e38), "must hold values up to"),
    "a header without end": (lambda one: Letter(one.header + " " * 200_000, one.body), "has at most"),
    "another client's reply": (
        lambda one: Letter(json.dumps({**json.loads(one.header), "client": 0}), one.body),
        "expected the reply of client",
    ),
}


def test_lies_are_refused_recorded_and_the_round_goes_on(tmp_path):
    config = config_of("ca-hfp", rounds=2, clients=1 + len(LIES))
    grid = grid_of(config)
    for number, (change, _) in enumerate(LIES.values(), 1):
        lying(grid, 1000 + number, change)
    run, _ = run_on(grid, config, tmp_path / "run")
    for record in run.history:
        assert record.clients[0].status == "in time"
        for lie, (_, reason) in zip(record.clients[1:], LIES.values(), strict=True):
            assert (lie.status, lie.training_macs, lie.loss) == ("refused", 0, 0.0)
            assert reason in lie.problem
    assert all(tensor.isfinite().all() for tensor in run.global_state.values())


def test_too_few_replies_that_can_be_used_stop_the_run_and_it_goes_on_with_honest_nodes(tmp_path):
    config = config_of(rounds=2, **{"least-replies": 3})
    whole, _ = run_on(grid_of(config), config, tmp_path / "whole")
    grid, letters = grid_of(config), []

    def later_garbage(letter):
        letters.append(letter)
        return letter if len(letters) == 1 else Letter(letter.header, b"garbage")

    lying(grid, 1001, later_garbage)
    with pytest.raises(InputError, match=r"round 2 had 2 of the 3 usable .* \(least_replies\): 2 in time, 1 refused"):
        run_on(grid, config, tmp_path / "run")
    again, _ = run_on(grid_of(config), config, tmp_path / "x", resume=str(tmp_path / "run"))
    assert timeless(again.history) == timeless(whole.history)


def test_the_reply_of_an_earlier_round_is_refused_in_a_later_one(tmp_path):
    config = config_of(rounds=2)
    grid, first = grid_of(config), []

    def replay(letter):
        first.append(letter)
        return first[0]

    lying(grid, 1001, replay)
    run, _ = run_on(grid, config, tmp_path / "run")
    assert [statuses(record)[1] for record in run.history] == ["in time", "refused"]
    assert "expected the reply of round 1; found one of round 0" in run.history[1].clients[1].problem


def test_statistics_of_a_liar_are_refused_and_recorded(tmp_path):
    config = config_of(rounds=1, **{"batch-norm": "reestimate"})
    grid = grid_of(config)
    honest_run = grid._run

    def run_node(node, message):
        answer = honest_run(node, message)
        if node != 1001 or message.metadata.message_type != "evaluate":
            return answer
        letter = from_records(answer.content)
        negative = {name: -value - 1e6 for name, value in load(letter.body).items()}
        return Message(to_records(Letter(letter.header, save(negative))), reply_to=message)

    grid._run = run_node
    run, _ = run_on(grid, config, tmp_path / "run")
    liar = run.history[0].clients[1]
    assert liar.status == "in time"
    assert "its batch-norm statistics are refused" in liar.problem and "variances of at least 0" in liar.problem
    assert min(float(t.min()) for n, t in run.global_state.items() if n.endswith("running_var")) >= 0


@pytest.mark.parametrize("samples", [0, 1, 2**62])
def test_a_node_that_has_no_data_or_more_than_anyone_is_not_used(samples):
    letter = wire.write_hello(0, samples, "digest")
    with pytest.raises(InputError, match="samples must be between 2 and 1000000000"):
        wire.read_hello(letter)


def said(records):
    """A node's reply to the first question, as far as the server looks at it."""
    return SimpleNamespace(has_error=lambda: False, content=records)


@given(seed=st.integers(0, 2**32), client=st.integers(0, 3))
def test_no_bytes_in_place_of_a_hello_end_the_server(seed, client):
    draw, told = random.Random(seed), []
    nodes = Nodes(SimpleNamespace(), Settings(), clients=3, say=told.append)
    honest = wire.write_hello(client, 10, "digest").header.encode()
    for node in range(4):
        header = mutated(honest, draw).decode("utf-8", "replace") if node else honest.decode()
        letter = to_records(Letter(header, draw.randbytes(draw.randrange(40))))
        body = RecordDict({"body": ArrayRecord({"body": Array("x", (1,), "other", draw.randbytes(9))})})
        alone = RecordDict({"header": ConfigRecord({"header": draw.choice([1, 2.5, b"x", [1]])})})
        records = draw.choice([letter, body, alone, RecordDict()]) if node else letter
        nodes._meet(node, said(records))
    assert len(told) == 4, "each node is taken or refused with a reason"
    assert all(0 <= one.client < 3 and 2 <= one.samples <= 10**9 for one in nodes.nodes.values())
    assert (0 in {one.id for one in nodes.nodes.values()}) == (client < 3)


def test_own_data_and_model_are_learnt_where_they_are(tmp_path, monkeypatch):
    (tmp_path / "own_problem.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    config = config_of("ca-hfp", clients=2, rounds=2, problem="own_problem", ratio="0.5")
    grid = grid_of(config)
    run, _ = run_on(grid, config, tmp_path / "run", problem="own_problem")
    assert [one.samples for one in run.history[0].clients] == [10, 20]
    assert set(run.global_state) == set(IndexMap.identity(run.global_state).tensors)
    assert run.history[-1].accuracy > 0


OWN = """
import torch
from torch import nn

def model():
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 3))

def client_data(client, clients):
    return data(10 * (client + 1), client)

def test_data():
    return data(30, 9)

def data(samples, seed):
    labels = torch.arange(samples) % 3
    noise = torch.randn(samples, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    return noise + labels.view(-1, 1, 1, 1), labels
"""
