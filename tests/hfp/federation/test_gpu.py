"""Federated runs on a GPU: they are those on the processor."""

import dataclasses

import pytest
import torch

from hfp import Experiment, simulate
from hfp.methods import methods

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

SMALL = Experiment(train_images=200, clients=4, rounds=2, diagnostics=True, personal=1, head_start=2.0, augment=True)
METHODS = [method.name for method in methods()]


@pytest.fixture(autouse=True)
def full_precision(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


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
    assert found.history[0].loss == pytest.approx(expected.history[0].loss, rel=0.05)
    assert found.history[-1].diagnostics is not None
    assert found.history[-1].personal is not None


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("batch_norm", ["batch", "local"])
def test_half_precision_learns_what_full_precision_does(method, batch_norm):
    small = dataclasses.replace(SMALL, method=method, device="cuda", batch_norm=batch_norm)
    full = simulate(small)
    half = simulate(dataclasses.replace(small, amp=True, channels_last=True))
    assert all(torch.isfinite(tensor).all() for tensor in half.global_state.values())
    losses = [[client.loss for client in run.history[0].clients] for run in (full, half)]
    assert losses[1] == pytest.approx(losses[0], rel=0.1)
