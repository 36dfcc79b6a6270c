import pytest
import torch
from torch import nn

from hfp.training import batch_norm as batchnorm


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))


def test_estimate_is_the_moments_of_the_data():
    model, images = network(), torch.randn(16, 2, 6, 6)
    found = batchnorm.estimate(model, [images])
    with torch.no_grad():
        first = model[0](images)
    torch.testing.assert_close(found["1.running_mean"], first.mean((0, 2, 3)))
    torch.testing.assert_close(found["1.running_var"], first.transpose(0, 1).flatten(1).var(1))
    assert set(found) == {"1.running_mean", "1.running_var", "4.running_mean", "4.running_var"}
    assert set(batchnorm.estimate(nn.BatchNorm1d(3), [torch.randn(4, 3)])) == {"running_mean", "running_var"}


def test_samples_count_the_same_in_batches_of_any_size():
    model, images = network(), torch.randn(10, 2, 6, 6)
    found = batchnorm.estimate(model, [images[:7], images[7:]])
    with torch.no_grad():
        first = model[0](images)
    torch.testing.assert_close(found["1.running_mean"], first.mean((0, 2, 3)))
    within = sum(
        first[part].transpose(0, 1).flatten(1).var(1) * share
        for part, share in ((slice(7), 0.7), (slice(7, None), 0.3))
    )
    torch.testing.assert_close(found["1.running_var"], within)


def test_estimate_leaves_mode_and_weights():
    model = network().eval()
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    batchnorm.estimate(model, [torch.randn(4, 2, 5, 5)])
    assert not model.training
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name])


def test_pool_equals_the_moments_of_all_samples_together():
    torch.manual_seed(1)
    parts = [
        torch.randn(size, 3, dtype=torch.float64) * scale + scale for size, scale in ((10, 1.0), (40, 3.0), (5, 0.2))
    ]
    pool = batchnorm.Pool()
    for part in parts:
        moments = {"bn.running_mean": part.mean(0), "bn.running_var": part.var(0, correction=0)}
        pool.add(moments, weight=len(part))
    together = torch.cat(parts)
    pooled = pool.result()
    torch.testing.assert_close(pooled["bn.running_mean"], together.mean(0).float())
    torch.testing.assert_close(pooled["bn.running_var"], together.var(0, correction=0).float())


@pytest.mark.parametrize(
    ("model", "expected"),
    [(nn.BatchNorm2d(2), True), (nn.BatchNorm2d(2, track_running_stats=False), False), (nn.Linear(2, 2), False)],
)
def test_has_statistics(model, expected):
    assert batchnorm.has_statistics(nn.Sequential(model)) is expected
