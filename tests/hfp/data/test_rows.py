"""A client's share of large images gives the same batches as a copy of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from runs import timeless

from hfp.data import rows
from hfp.data.rows import Rows, share_of
from hfp.federation.experiment import Experiment
from hfp.federation.setup import set_up
from hfp.results.simulate import simulate
from hfp.training.local_step import LocalData, on_device

TINY = Experiment(train_images=60, clients=3, rounds=2, batch_size=8, head_start=1.0, diagnostics=True, personal=1)


def test_batches_of_a_share_are_those_of_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    images, chosen = torch.arange(120).reshape(10, 3, 2, 2), np.array([1, 4, 5, 9])
    copy = share_of(images, chosen)
    assert isinstance(copy, torch.Tensor)
    monkeypatch.setattr(rows, "LARGE_BYTES", 0)
    share = share_of(images, chosen)
    assert isinstance(share, Rows)
    assert (len(share), share.shape, share.dtype, share.device) == (4, copy.shape, copy.dtype, copy.device)
    for index in (torch.tensor([2, 0, 2]), torch.tensor([], dtype=torch.int64), slice(1, 3)):
        assert torch.equal(share[index], copy[index])


def test_a_run_on_large_images_gives_the_same_to_the_last_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = simulate(TINY)
    monkeypatch.setattr(rows, "LARGE_BYTES", 0)
    assert isinstance(set_up(TINY).shards[0].images, Rows)
    large = simulate(TINY)
    without_time = [timeless(run.history) for run in (usual, large)]
    assert without_time[0] == without_time[1]
    for name, tensor in usual.global_state.items():
        assert torch.equal(tensor, large.global_state[name])


def test_a_share_of_large_images_is_moved_to_a_gpu_that_has_room_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    images, chosen = torch.arange(120).reshape(10, 3, 2, 2), torch.tensor([1, 4])
    data = LocalData(Rows(images, chosen), chosen, lambda images: images)
    own_bytes = 2 * 12 * 8
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, device: tensor)  # there is no GPU
    for free, fits in ((2 * own_bytes, True), (2 * own_bytes - 1, False)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free, free))
        found = on_device(data, torch.device("cuda"))
        assert (found is not data) == fits
        assert torch.equal(found.images[:], images[chosen])
