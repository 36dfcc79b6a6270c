"""Federated runs on a GPU: they are those on the processor."""

import dataclasses

import pytest
import torch

from hfp import Experiment, simulate
from hfp.federation.fleet import InProcess
from hfp.federation.rounds import Course
from hfp.federation.setup import set_up
from hfp.methods import methods
from hfp.results.checkpoint import Checkpoint, load_checkpoint, save_checkpoint

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    pytest.mark.filterwarnings("ignore:local steps are not replayed:UserWarning"),
]

SMALL = Experiment(train_images=200, clients=4, rounds=2, diagnostics=True, personal=1, head_start=2.0, augment=True)
METHODS = [method.name for method in methods()]


@pytest.fixture(autouse=True)
def full_precision(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)


def both(**changes):
    here = dataclasses.replace(SMALL, **changes)
    return simulate(here), simulate(dataclasses.replace(here, device="cuda"))


@pytest.mark.parametrize("method", METHODS)
def test_a_run_is_that_on_the_processor(method):
    expected, found = both(method=method)
    assert all(tensor.device.type == "cpu" for tensor in found.global_state.values())
    for name in ("bytes_up", "bytes_down", "training_macs", "peak_bytes"):  # PruneFL trains until densities settle
        assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=0.01 if method == "prunefl" else 0)
    first, second = (run.history[0].clients for run in (expected, found))
    assert [client.loss for client in second] == pytest.approx([client.loss for client in first], rel=0.01)
    tolerance = 0.1 if method == "prunefl" else 0.05  # which weights PruneFL keeps turns on how sums are rounded
    assert found.history[0].loss == pytest.approx(expected.history[0].loss, rel=tolerance)
    assert found.history[-1].diagnostics is not None
    assert found.history[-1].personal is not None


REPLAYED = dataclasses.replace(
    SMALL, device="cuda", diagnostics=False, personal=0, rounds=3, epochs=2, batch_size=16, rank=2, weight_decay=1e-3
)
HALF = {"amp": True, "channels_last": True}


def assert_same_run(one, other):
    for first, second in zip(one.history, other.history, strict=True):
        assert [client.loss for client in first.clients] == [client.loss for client in second.clients]
        assert (first.accuracy, first.loss) == (second.accuracy, second.loss)
    for name, tensor in one.global_state.items():
        assert torch.equal(tensor, other.global_state[name]), name


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("precision", [{}, HALF], ids=["float32", "bfloat16"])
def test_replayed_steps_end_where_steps_one_by_one_do(method, precision):
    options = {"prunefl": {"every": 2, "passes": 5, "limit": 2}}.get(method, {})
    here = dataclasses.replace(REPLAYED, method=method, options=options, **precision)
    assert_same_run(simulate(here), simulate(dataclasses.replace(here, cuda_graphs=False, clients_in_flight=1)))


@pytest.mark.parametrize("method", ["ca-hfp", "fedavg", "dapperfl"])
def test_the_number_of_clients_in_flight_changes_nothing(method):
    here = dataclasses.replace(REPLAYED, method=method, clients=7)
    runs = [simulate(dataclasses.replace(here, clients_in_flight=count)) for count in (1, 3, 16)]
    assert_same_run(runs[0], runs[1])
    assert_same_run(runs[0], runs[2])


def test_steps_are_captured_once_for_a_shape_and_replayed():
    federation = set_up(dataclasses.replace(REPLAYED, clients_in_flight=1, alpha=100.0))
    fleet = InProcess(federation)
    course = Course(federation, fleet)
    for _ in range(3):
        course.advance()
    (clients,) = fleet._lanes._clients
    steps = [step for _, shell in clients._shells._waiting.values() for step in shell.steps.values()]
    assert len(steps) == 2  # of two ratios
    for step in steps:
        assert step._graph is not None
        assert step.replays > 3


def test_the_servers_state_stays_on_the_gpu_and_a_run_goes_on_from_a_file(tmp_path):
    here = dataclasses.replace(REPLAYED, rounds=4)
    federation = set_up(here)
    course = Course(federation)
    for _ in range(2):
        course.advance()
    assert all(tensor.is_cuda for tensor in course.state.weights.values())
    assert all(tensor.is_cuda for tensor in course.state.method_state.variation.gradient.values())
    save_checkpoint(tmp_path, Checkpoint(here, course.run_state))
    again = Course(set_up(here), run_state=load_checkpoint(tmp_path).run_state)
    for _ in range(2):
        ours, theirs = course.advance(), again.advance()
        assert ours.record.loss == theirs.record.loss
        for name, tensor in ours.state.weights.items():
            assert torch.equal(tensor, theirs.state.weights[name]), name


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("batch_norm", ["batch", "local"])
def test_half_precision_learns_what_full_precision_does(method, batch_norm):
    small = dataclasses.replace(SMALL, method=method, device="cuda", batch_norm=batch_norm)
    full = simulate(small)
    half = simulate(dataclasses.replace(small, amp=True, channels_last=True))
    assert all(torch.isfinite(tensor).all() for tensor in half.global_state.values())
    losses = [[client.loss for client in run.history[0].clients] for run in (full, half)]
    assert losses[1] == pytest.approx(losses[0], rel=0.1)
