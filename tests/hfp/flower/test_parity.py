"""The same experiment embedded and on Flower's messages: the same model, the same figures, the bytes that are sent."""

import pytest
import torch

pytest.importorskip("flwr")

from cases import by_default
from inline_grid import InlineGrid
from runs import timeless

from hfp import simulate
from hfp.flower import client, server
from hfp.flower.settings import Settings

CLIENTS = 3
METHODS = {
    "ca-hfp": {"options": "warmup=1"},
    "fedavg": {},
    "heterofl": {},
}
SPARSE = {
    "depthfl": {"rank": 2},
    "fedrts": {"options": "every=1", "learning-rate-schedule": "cosine"},
    "fiarse": {"options": "structured=false", "first-ratio": 0.75},
    "scalefl": {"rank": 2},
}
"""Methods whose messages lack single weights or whole tensors, as headers say; their bytes are tested elsewhere."""


def experiment(method, **changes):
    return {"method": method, "train-images": 90, "clients": CLIENTS, "rounds": 3, "head-start": 2, **changes}


def on_flower(config, tmp_path, order=list, **settings):
    grid = InlineGrid(client.app, config["clients"], config, order)
    run = server.run(
        grid, server.experiment_from(config), Settings(out=str(tmp_path / "run"), **settings), say=lambda _: None
    )
    return grid, run


def embedded(config):
    return simulate(server.experiment_from(config))


def assert_same_run(mine, theirs, tolerance=1e-6):
    for name, tensor in theirs.global_state.items():
        torch.testing.assert_close(mine.global_state[name], tensor, rtol=tolerance, atol=tolerance, msg=name)
    assert timeless(mine.history) == timeless(theirs.history)


def test_statistics_of_batch_norm_are_asked_for_and_none_of_other_layers(tmp_path):
    config = experiment("fedavg", model="job_models:two_norms", **{"batch-norm": "reestimate", "rounds": 1})
    _, run = on_flower(config, tmp_path)
    assert [one.problem for one in run.history[0].clients] == [""] * CLIENTS
    assert_same_run(run, embedded(config))


@pytest.mark.parametrize("method", by_default(["fedrts", "depthfl"], SPARSE))
def test_masks_of_single_weights_rates_and_ratios_of_a_round_reach_flowers_clients(method, tmp_path):
    config = experiment(method, **SPARSE[method])
    _, run = on_flower(config, tmp_path)
    assert_same_run(run, embedded(config))


@pytest.mark.parametrize("method", METHODS)
def test_flower_gives_the_embedded_result_and_sends_what_is_accounted(method, tmp_path):
    config = experiment(method, **METHODS[method])
    grid, run = on_flower(config, tmp_path, order=reversed)
    assert_same_run(run, embedded(config))
    sent = [(down, up) for kind, _, down, up in grid.sizes if kind == "train"]
    assert len(sent) == CLIENTS * 3
    assert sum(down for down, _ in sent) == pytest.approx(sum(r.bytes_down for r in run.history), rel=0.02)
    assert sum(up for _, up in sent) == pytest.approx(sum(r.bytes_up for r in run.history), rel=0.02)
