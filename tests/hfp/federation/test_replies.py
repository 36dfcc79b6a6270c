"""What of a client's reply is refused before it reaches the global model."""

import dataclasses
import math

import pytest
import torch
from federated import assigned, begin, context_of, local_of, small_network, update_of

from hfp import Experiment
from hfp.federation.fleet import InProcess
from hfp.federation.replies import ReplyCheck
from hfp.federation.rounds import Course
from hfp.federation.setup import Federation, set_up
from hfp.methods import create_method
from hfp.methods.dapperfl import KEPT
from hfp.methods.heterofl import CLASSES
from hfp.methods.prunefl import ACTIVE, SQUARES

METHODS = {"prunefl": {"passes": 1, "limit": 1, "every": 1}}


@pytest.fixture(scope="module")
def network():
    model = small_network()
    return model, context_of(model)


def answered(network, name):
    """A method, its state and what a client really answered."""
    model, context = network
    method = create_method(name, **METHODS.get(name, {}))
    state, client = begin(model, method, context), context.clients[1]
    task = assigned(method, context, state, client)
    reply = method.train(local_of(model, context, client), task)
    return check_of(network, method), state, dataclasses.replace(update_of(client, task, {}), reply=reply)


def check_of(network, method):
    """The check of a federation of the test's clients, who train as `local_of` has them train."""
    model, context = network
    experiment = Experiment(method=method.name, clients=len(context.clients), head_start=1.0)
    training = local_of(model, context, context.clients[0]).training
    return ReplyCheck(Federation(experiment, method, None, (), model, context, training, torch.device("cpu"), ""))


def changed(update, **tensors):
    merged = {n: t for n, t in {**update.reply.tensors, **tensors}.items() if t is not None}
    return dataclasses.replace(update, reply=dataclasses.replace(update.reply, tensors=merged))


@pytest.mark.parametrize(
    "name", ["ca-hfp", "dapperfl", "fedavg", "fedmp", "fedprox", "fedrolex", "fjord", "heterofl", "prunefl"]
)
def test_real_answers_are_taken(network, name):
    check, state, update = answered(network, name)
    assert check.problem_of(state, update) == ""


def damages(update):
    tensors = update.reply.tensors
    bias = [name for name in tensors if name.endswith("bias")][-1]
    nan, wide = tensors[bias].clone(), torch.cat([tensors[bias]] * 2)
    nan[0] = math.nan
    yield f"{bias} holds values that are not finite", changed(update, **{bias: nan})
    yield f"the reply lacks {bias}", changed(update, **{bias: None})
    yield "stranger", changed(update, stranger=torch.zeros(3))
    yield f"{bias}: expected the compact shape", changed(update, **{bias: wide})
    yield f"{bias} must be torch.float64; found torch.float32", changed(update, **{bias: tensors[bias].float()})
    yield (
        "by what the client holds; found -1",
        dataclasses.replace(update, reply=dataclasses.replace(update.reply, steps=-1)),
    )
    yield "loss must be finite", dataclasses.replace(update, reply=dataclasses.replace(update.reply, loss=math.inf))


@pytest.mark.parametrize("name", ["ca-hfp", "dapperfl", "heterofl", "prunefl"])
def test_damaged_answers_are_refused_with_a_reason(network, name):
    check, state, update = answered(network, name)
    for reason, damaged in damages(update):
        assert reason in check.problem_of(state, damaged)


@pytest.mark.parametrize(
    ("name", "tensor", "value", "reason"),
    [
        ("heterofl", CLASSES, torch.tensor([3, 3], dtype=torch.int32), "ascending int32 numbers below 10"),
        ("heterofl", CLASSES, torch.tensor([3, 10], dtype=torch.int32), "ascending int32 numbers below 10"),
        ("heterofl", CLASSES, torch.tensor([-1, 3], dtype=torch.int32), "ascending int32 numbers below 10"),
        ("heterofl", CLASSES, torch.zeros(0, dtype=torch.int32), "ascending int32 numbers below 10"),
        ("heterofl", "classifier.bias", torch.zeros(1), "classifier.bias: expected the compact shape"),
        ("dapperfl", KEPT, None, f"the reply lacks {KEPT}"),
        ("dapperfl", KEPT, torch.zeros(1, dtype=torch.uint8), "bits in"),
        ("dapperfl", KEPT, torch.full((7,), 255, dtype=torch.uint8), "expected"),
        ("prunefl", ACTIVE, None, f"the reply lacks {ACTIVE}"),
        ("prunefl", ACTIVE, torch.zeros(3, dtype=torch.uint8), "bits in 3"),
        ("prunefl", SQUARES + "stem.0.weight", torch.ones(2), "squares of 1 layers; found"),
    ],
)
def test_what_a_method_adds_is_checked_too(network, name, tensor, value, reason):
    check, state, update = answered(network, name)
    found = check.problem_of(state, changed(update, **{tensor: value}))
    assert found and (reason in found or name == "prunefl")


class Vandal(InProcess):
    """A fleet whose client 1 answers with what is not a number."""

    def train(self, round, clients, write):
        for answer in super().train(round, clients, write):
            if answer.client.index == 1:
                tensors = {n: t * math.nan if t.is_floating_point() else t for n, t in answer.reply.tensors.items()}
                answer = dataclasses.replace(answer, reply=dataclasses.replace(answer.reply, tensors=tensors))
            yield answer


def test_a_refused_reply_is_recorded_and_leaves_the_model_to_the_others():
    federation = set_up(Experiment(method="fedavg", train_images=90, clients=3, rounds=1, batch_norm="aggregate"))
    outcome = Course(federation, Vandal(federation)).advance()
    assert [client.status for client in outcome.record.clients] == ["in time", "refused", "in time"]
    assert "not finite" in outcome.record.clients[1].problem
    assert len(outcome.record.trained) == 2
    assert all(tensor.isfinite().all() for tensor in outcome.state.weights.values())
