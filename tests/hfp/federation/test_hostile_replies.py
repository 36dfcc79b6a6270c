"""Whatever a client answers, the run goes on and the global model stays finite."""

import dataclasses
import math

import pytest
import torch
from federated import assigned, begin, context_of, local_of, small_network, update_of
from hypothesis import given, settings
from hypothesis import strategies as st

from hfp import Experiment, InputError
from hfp.federation.fleet import InProcess
from hfp.federation.replies import FLOAT32_MAX, ReplyCheck, check_tensors
from hfp.federation.rounds import Course
from hfp.federation.setup import Federation, set_up
from hfp.methods import Client, create_method
from hfp.training.batch_norm import Pool

MODEL = small_network().float()
CONTEXT = context_of(MODEL)
OPTIONS = {"prunefl": {"passes": 1, "limit": 1, "every": 1}, "fedmp": {"bandit": True}}
METHODS = ("ca-hfp", "dapperfl", "fedavgm", "fedmp", "heterofl", "prunefl")


def check_of(method):
    """The check of a federation of the test's clients, who train as `local_of` has them train."""
    experiment = Experiment(method=method.name, clients=len(CONTEXT.clients), head_start=1.0)
    training = local_of(MODEL, CONTEXT, CONTEXT.clients[0]).training
    return ReplyCheck(Federation(experiment, method, None, (), MODEL, CONTEXT, training, torch.device("cpu"), ""))


def honest_updates(method):
    state = begin(MODEL, method, CONTEXT)
    updates = []
    for client in method.select(CONTEXT, state, CONTEXT.clients):
        task = assigned(method, CONTEXT, state, client)
        reply = method.train(local_of(MODEL, CONTEXT, client), task)
        updates.append(dataclasses.replace(update_of(client, task, {}), reply=reply))
    return state, updates


HONEST = {name: honest_updates(create_method(name, **OPTIONS.get(name, {}))) for name in METHODS}

numbers = st.one_of(
    st.floats(width=32), st.sampled_from([math.nan, math.inf, FLOAT32_MAX, -FLOAT32_MAX, 1e30, 1e19, -1e6, 1e-45, 0.0])
)
dtypes = st.sampled_from([torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool])


@st.composite
def tensors_changed(draw, method):
    """The tensors of an honest reply with some of them changed in value, shape, dtype or name."""
    found = dict(HONEST[method][1][-1].reply.tensors)  # by name: hypothesis writes arguments out
    for _ in range(draw(st.integers(0, 4))):
        name = draw(st.sampled_from(sorted(found)))
        tensor, how = found[name], draw(st.sampled_from(["fill", "some", "scale", "shape", "dtype", "drop", "add"]))
        if how == "drop":
            found.pop(name)
        elif how == "add":
            found[draw(st.text(max_size=8))] = torch.full((2,), draw(numbers))
        elif how == "dtype":
            found[name] = tensor.to(draw(dtypes))
        elif how == "shape":
            shapes = tensor.reshape(-1)[:-1], tensor.unsqueeze(0), tensor.reshape(-1)
            found[name] = shapes[draw(st.integers(0, 2))]
        elif tensor.is_floating_point():
            value = torch.tensor(draw(numbers)).to(tensor)
            found[name] = tensor * value if how == "scale" else value.expand_as(tensor).clone()
            if how == "some":
                found[name] = torch.where(torch.arange(tensor.numel()).reshape(tensor.shape) < 3, found[name], tensor)
        if not found:
            return found
    return found


figures = st.fixed_dictionaries(
    {},
    optional={
        **{
            name: st.one_of(st.integers(-1, 100), st.sampled_from([2**31, 2**63 - 1, 10**400]))
            for name in ("steps", "samples", "parameters", "forward_macs", "training_macs", "peak_bytes")
        },
        "loss": numbers,
        "variance": st.none() | numbers,
    },
)


@pytest.mark.parametrize("name", METHODS)
@settings(max_examples=25)
@given(data=st.data())
def test_no_reply_ends_a_round_or_makes_the_state_anything_but_finite(name, data):
    method = create_method(name, **OPTIONS.get(name, {}))
    (state, updates), check = HONEST[name], check_of(method)
    liar = updates[-1]
    tensors = data.draw(tensors_changed(name))
    reply = dataclasses.replace(liar.reply, tensors=tensors, **data.draw(figures))
    collector = method.collect(CONTEXT, state)
    for update in [*updates[:-1], dataclasses.replace(liar, reply=reply)]:
        if not check.problem_of(state, update):
            collector.add(update)
    after, _ = check.next_state(state, collector) if updates[:-1] else (state, "")
    assert after.round in (state.round, state.round + 1)
    for name, tensor in after.weights.items():
        assert tensor.isfinite().all()
        assert not name.endswith("running_var") or (tensor >= 0).all()


@pytest.mark.parametrize("name", METHODS)
def test_the_largest_values_that_are_taken_still_give_a_finite_state(name):
    method = create_method(name, **OPTIONS.get(name, {}))
    (state, updates), check = HONEST[name], check_of(method)
    collector = method.collect(CONTEXT, state)
    for update in updates:
        sign = -1 if update.client.index % 2 else 1
        largest = {
            n: torch.full_like(t, 0.99 * check.largest * (1 if n.endswith("var") or "squares" in n else sign))
            if t.is_floating_point()
            else t
            for n, t in update.reply.tensors.items()
        }
        update = dataclasses.replace(update, reply=dataclasses.replace(update.reply, tensors=largest, steps=1))
        collector.add(update)
    after = collector.finish()
    check_tensors(after.weights)


class Broken(InProcess):
    """A fleet whose clients' replies pass the check of each, but not that of what comes of them."""

    def train(self, round, clients, write):
        if round == 0:
            self.honest = list(super().train(round, clients, write))
            yield from self.honest
            return
        most = 0.99 * ReplyCheck(self._federation).largest
        for answer in self.honest:
            tensors = {
                n: torch.full_like(t, most) if n.endswith("weight") else t for n, t in answer.reply.tensors.items()
            }
            reply = dataclasses.replace(answer.reply, tensors=tensors)
            yield dataclasses.replace(answer, task=write(answer.client), reply=reply)


def test_a_round_whose_result_can_not_be_used_is_dropped_and_the_last_good_state_kept():
    experiment = Experiment(
        method="fedavgm",
        options={"server_momentum": 0.5},
        train_images=90,
        clients=3,
        rounds=4,
        batch_norm="aggregate",
        evaluate=4,
        head_start=1.0,
    )
    federation = set_up(experiment)
    course = Course(federation, Broken(federation))
    states = [course.advance() for _ in range(4)]
    # the second round moves as far as replies may, and its momentum would carry the third beyond
    assert [one.status for one in states[2].record.clients] == ["refused"] * 3
    assert "the round is dropped and the model stays as it was" in states[2].record.clients[0].problem
    for name, tensor in states[1].state.weights.items():
        assert torch.equal(states[2].state.weights[name], tensor)
    assert [state.state.round for state in states] == [1, 2, 3, 4]


def test_statistics_are_finite_and_bounded_and_variances_are_not_negative():
    check = check_of(create_method("fedavg"))
    good = {"bn.running_mean": torch.zeros(3), "bn.running_var": torch.ones(3)}
    assert check.statistics_problem(good) == ""
    for name, value, reason in (
        ("bn.running_var", -1e6, "variances of at least 0"),
        ("bn.running_mean", math.nan, "not finite"),
        ("bn.running_mean", 1e30, "must hold values up to"),
    ):
        assert reason in check.statistics_problem({**good, name: torch.full((3,), value)})


LAYERS = {"a.running_mean": 3, "a.running_var": 3, "dead.running_mean": 2, "dead.running_var": 2}


@given(st.integers(3, 6), st.integers(0, 5), st.sampled_from(["running_mean", "running_var"]), st.floats(1e3, 1e9))
def test_statistics_far_from_the_other_clients_are_refused_and_no_others(clients, liar, which, value):
    generator = torch.Generator().manual_seed(clients)
    found = []
    for index in range(clients):
        own = {name: torch.rand(size, generator=generator) for name, size in LAYERS.items()}
        own |= {"dead.running_mean": torch.zeros(2), "dead.running_var": torch.zeros(2)}  # their inputs are constant
        found.append((Client(index, 10, 0.5), own))
    check = check_of(create_method("fedavg"))
    assert check.outlying_statistics(found) == {}
    liar %= clients
    found[liar][1][f"a.{which}"] += value
    refused = check.outlying_statistics(found)
    assert refused.keys() == {liar}
    assert refused[liar].startswith("a.running_mean is ")
    assert "standard deviations from the other clients'; at most 10 is taken" in refused[liar]
    assert check.outlying_statistics(found[:2]) == {}, "of two clients, nobody can tell who lies"


class Liar(InProcess):
    """A fleet whose first client adds 1,000 to the means of its batch-norm statistics."""

    def statistics(self, round, clients, weights):
        for client, own in super().statistics(round, clients, weights):
            shift = 1000.0 if client.index == 0 else 0.0
            yield client, {name: value + shift if name.endswith("mean") else value for name, value in own.items()}


def test_refused_statistics_are_in_no_record_of_a_round_that_measures_none():
    quick = {"method": "fedavg", "train_images": 120, "clients": 4, "rounds": 4, "head_start": 1.0, "seed": 2}
    federation = set_up(Experiment(batch_norm="reestimate", participation=0.5, evaluate=2, **quick))
    course = Course(federation, Liar(federation))
    problems = [{one.client: one.problem for one in course.advance().record.clients} for _ in range(3)]
    assert 0 not in problems[1], "the round that refuses the liar's statistics does not ask it"
    assert problems[2][0] == ""


def test_finite_lies_about_statistics_do_not_ruin_the_global_model():
    federation = set_up(Experiment(method="fedavg", train_images=120, clients=4, rounds=1, head_start=1.0))
    record = (course := Course(federation, Liar(federation))).advance().record
    assert "its batch-norm statistics are refused: stem.1.running_mean is" in record.clients[0].problem
    assert [client.problem for client in record.clients[1:]] == [""] * 3
    honest = Course(federation, InProcess(federation))
    honest.advance()
    for name, value in course.state.weights.items():
        if name.endswith("running_mean"):
            assert (value - honest.state.weights[name]).abs().max() < 1


def test_nothing_is_refused_for_what_others_say_in_a_private_run():
    private = Experiment(clients=3, privacy={"noise": 1.0, "clip": 1.0})
    check = check_of(create_method("fedavg"))
    check._federation = dataclasses.replace(check._federation, experiment=private)
    own = {"a.running_mean": torch.zeros(3), "a.running_var": torch.ones(3)}
    found = [(Client(index, 10, 0.5), {**own, "a.running_mean": torch.full((3,), 1e3 * index)}) for index in range(3)]
    assert check.outlying_statistics(found) == {}


def test_counts_beyond_what_sums_can_hold_are_refused():
    check_tensors({"bn.num_batches_tracked": torch.tensor(2**53)})
    with pytest.raises(InputError, match="num_batches_tracked must hold values up to"):
        check_tensors({"bn.num_batches_tracked": torch.tensor(2**62)})


def test_counts_below_0_are_refused():
    with pytest.raises(InputError, match="num_batches_tracked must hold counts of at least 0; found -1"):
        check_tensors({"bn.num_batches_tracked": torch.tensor(-1)})


def test_complex_values_that_are_not_finite_are_refused():
    check_tensors({"filter": torch.ones(3, dtype=torch.complex64)})
    with pytest.raises(InputError, match="filter holds values that are not finite"):
        check_tensors({"filter": torch.tensor([1.0, complex(0, math.nan)])})


class Tables(torch.nn.Module):
    """A network that looks its outputs up by a table of indices and leaves some out by a mask."""

    def __init__(self):
        super().__init__()
        self.features, self.classes = torch.nn.Conv2d(1, 6, 3), torch.nn.Linear(6, 10)
        self.register_buffer("order", torch.arange(10))
        self.register_buffer("shown", torch.ones(10, dtype=torch.bool))

    def forward(self, images):
        scores = self.classes(self.features(images).relu().mean((2, 3)))
        return scores[:, self.order].where(self.shown, float("-inf"))


class TableLiar(InProcess):
    """A fleet whose first client answers another table of indices or another mask."""

    def __init__(self, federation, lie):
        super().__init__(federation)
        self.lie = lie

    def train(self, round, clients, write):
        for result in super().train(round, clients, write):
            if result.client.index == 0:
                tensors = {**result.reply.tensors, **self.lie}
                result = dataclasses.replace(result, reply=dataclasses.replace(result.reply, tensors=tensors))
            yield result


@pytest.mark.parametrize("method", ["heterofl", "fedrolex"])
def test_a_tensor_whose_name_only_begins_as_one_that_may_be_added_ends_no_run(method):
    federation = set_up(Experiment(method=method, clients=3, train_images=60, rounds=1, head_start=1.0))
    course = Course(federation, TableLiar(federation, {"classes/present2": torch.zeros(2)}))
    assert [client.status for client in course.advance().record.clients] == ["in time"] * 3


@pytest.mark.parametrize("lie", [{"order": torch.full((10,), 10**6)}, {"shown": torch.zeros(10, dtype=torch.bool)}])
@pytest.mark.parametrize("method", ["fedavg", "ca-hfp"])
def test_indices_and_masks_of_the_model_stay_as_they_are_whatever_a_client_answers(method, lie):
    network = Tables()
    federation = set_up(Experiment(model=network, method=method, clients=3, train_images=60, rounds=1, head_start=1.0))
    course = Course(federation, TableLiar(federation, lie))
    record = course.advance().record
    (name,) = lie
    assert f"{name} must come back as it was sent" in record.clients[0].problem
    assert [client.problem for client in record.clients[1:]] == ["", ""]
    assert torch.equal(course.state.weights[name], network.state_dict()[name])


@pytest.mark.parametrize("value", [-math.inf, -1e9])
def test_a_model_whose_honest_replies_would_all_be_refused_is_refused_before_anything_trains(value):
    network = Tables()
    network.register_buffer("causal", torch.full((3, 3), value).triu(1))
    federation = set_up(Experiment(model=network, method="fedavg", clients=3, train_images=60))
    with pytest.raises(InputError, match="initial state: causal (holds|must hold) values .* persistent=False"):
        Course(federation)


def test_the_largest_statistics_pool_to_finite_ones():
    most, pool = check_of(create_method("fedavg")).largest, Pool()
    for sign in (1, -1):
        pool.add({"bn.running_mean": torch.full((3,), sign * most), "bn.running_var": torch.full((3,), most)}, 10)
    assert all(value.isfinite().all() for value in pool.result().values())


def test_training_that_kept_more_than_the_device_has_is_refused():
    (state, updates), check = HONEST["heterofl"], check_of(create_method("heterofl"))
    update = updates[0]
    for memory, problem in (
        (update.reply.peak_bytes, ""),
        (update.reply.peak_bytes - 1, "peak_bytes must be between 1"),
    ):
        device = dataclasses.replace(update.client.device, memory=float(memory))
        client = dataclasses.replace(update.client, device=device)
        assert check.problem_of(state, dataclasses.replace(update, client=client)).startswith(problem)
        assert bool(problem) == bool(check.problem_of(state, dataclasses.replace(update, client=client)))
