"""The example app's own data and model learn; what a problem must give is checked with a reason."""

from pathlib import Path

import pytest
import torch

from hfp import Experiment, InputError
from hfp.federation.problem import load_problem
from hfp.federation.rounds import Course
from hfp.federation.setup import set_up_own, with_data_of

APP = Path(__file__).parents[3] / "examples" / "flower"


def test_the_examples_problem_is_learnt():
    problem = load_problem(APP / "my_problem.py")
    experiment = Experiment(clients=30, rounds=1, ratio=0.5)
    federation = with_data_of(set_up_own(experiment, problem, [50] * 30), problem, 3)
    assert [len(shard.labels) for shard in federation.shards] == [0] * 3 + [50] + [0] * 26
    client = federation.context.clients[3]
    state = federation.method.start(federation.context, federation.initial)
    task = federation.method.send(
        federation.context, state, client, federation.method.plan(federation.context, state, client)
    )
    reply = Course(federation)._fleet._clients.train(0, client, task)
    assert reply.samples == 10 * 50, "the first round is ten epochs"
    assert 0 < reply.parameters < sum(parameter.numel() for parameter in federation.model.parameters())


GOOD = """
import torch
from torch import nn
def model(): return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
def client_data(client, clients): return torch.randn(4, 1, 8, 8), torch.arange(4) % 3
def test_data(): return torch.randn(6, 1, 8, 8), torch.arange(6) % 3
"""


def own(tmp_path, text, **changes):
    path = tmp_path / "own.py"
    path.write_text(text)
    problem = load_problem(path)
    return with_data_of(set_up_own(Experiment(clients=2, **changes), problem, [4, 4]), problem, 0)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("def model()", "def network()", r"own.py must define model\(\)"),
        (
            "return nn.Sequential",
            "return 3 or nn.Sequential",
            r"own.model\(\) must return a torch.nn.Module; found int",
        ),
        ("return torch.randn(6, 1, 8, 8), ", "return ", r"own.test_data\(\) must return a pair of tensors"),
        ("torch.randn(4, 1, 8, 8)", "torch.zeros(4, 1, 8, 8, dtype=torch.uint8)", "must return float images and int64"),
        ("torch.randn(4, 1, 8, 8)", "torch.randn(5, 1, 8, 8)", "as many images as labels"),
        ("torch.arange(4) % 3", "torch.arange(4)", r"labels must be in \[0, 3\), one per class; found 3"),
        ("torch.randn(6, 1, 8, 8)", "torch.randn(6, 1, 9, 9)", "the model does not run on the test data"),
    ],
)
def test_what_a_problem_gives_is_checked(tmp_path, old, new, reason):
    assert old in GOOD
    with pytest.raises(InputError, match=reason):
        own(tmp_path, GOOD.replace(old, new))


def test_what_needs_the_clients_data_on_the_server_is_refused(tmp_path):
    with pytest.raises(InputError, match="diagnostics needs the clients' data on the server"):
        own(tmp_path, GOOD, diagnostics=True)
    assert torch.is_tensor(own(tmp_path, GOOD).initial["0.weight"])


def test_a_missing_file_is_told_of(tmp_path):
    with pytest.raises(InputError, match="no Python file"):
        load_problem(tmp_path / "nothing.py")
