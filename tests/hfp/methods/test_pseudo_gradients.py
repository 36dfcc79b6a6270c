"""What clients' models did in a round, as gradients: how much they agree, what nobody holds; against definitions."""

import dataclasses

import pytest
import torch
from federated import context_of
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hfp.methods.blocks.pseudo_gradients import PseudoGradients
from hfp.methods.interface.values import TrainedPart


class Tiny(nn.Sequential):
    """Two layers of 8 and 12 channels and a classifier."""

    def __init__(self):
        super().__init__(
            nn.Conv2d(1, 8, 1), nn.Conv2d(8, 12, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5)
        )

    def get_classifier(self):
        return self[-1]


SETTING = context_of(Tiny().double())
GROUPS = SETTING.groups
PARAMETERS = {name: SETTING.model.state_dict()[name] for name in SETTING.parameters}
DISTANCE = 0.5


def moved(gradient, kept=1.0):
    """A client that holds the first share of each group's channels and moved against `gradient` (full shapes)."""
    plan = GROUPS.plan({name: range(max(1, int(kept * size))) for name, size in GROUPS.sizes.items()})
    index_map = GROUPS.index_map(plan)
    before = {name: index_map.tensors[name].restrict(tensor) for name, tensor in PARAMETERS.items()}
    change = {name: DISTANCE * index_map.tensors[name].restrict(gradient[name]) for name in PARAMETERS}
    return TrainedPart(index_map, before, {name: before[name] - change[name] for name in PARAMETERS})


def drawn(seed, common=0.0):
    shared, own = (torch.Generator().manual_seed(number) for number in (999, seed))
    return {
        name: common * torch.randn(tensor.shape, generator=shared, dtype=tensor.dtype)
        + torch.randn(tensor.shape, generator=own, dtype=tensor.dtype)
        for name, tensor in PARAMETERS.items()
    }


def sums_of(clients, idle=()):
    """Of clients with their weights, and of `idle` ones that took no step."""
    sums = PseudoGradients(PARAMETERS)
    for held, weight in clients:
        sums.add(held, weight, DISTANCE)
    for held, weight in idle:
        sums.add(held, weight, 0.0)
    return sums


def agreement(clients, idle=()):
    return sums_of(clients, idle).agreement()


def naive(clients):
    core = torch.cat(
        [torch.stack([held.index_map.masks()[name] for held, _ in clients]).all(0).flatten() for name in PARAMETERS]
    )
    rows = []
    for held, _ in clients:
        parts = []
        for name, tensor in PARAMETERS.items():
            full = torch.zeros_like(tensor)
            full[held.index_map.masks()[name]] = ((held.before[name] - held.after[name]) / DISTANCE).reshape(-1)
            parts.append(full.flatten())
        rows.append(torch.cat(parts)[core])
    total = sum(weight for _, weight in clients)
    shares = [weight / total for _, weight in clients]
    mean = sum(share * row for share, row in zip(shares, rows, strict=True))
    within = sum(share * float(row @ row) for share, row in zip(shares, rows, strict=True))
    alone = sum(share**2 for share in shares)
    return max(0.0, (float(mean @ mean) / within - alone) / (1 - alone))


@settings(max_examples=25, deadline=None)
@given(
    clients=st.lists(
        st.tuples(st.integers(0, 50), st.sampled_from([0.25, 0.5, 1.0]), st.integers(1, 40)), min_size=2, max_size=4
    ),
    common=st.sampled_from([0.0, 0.5, 2.0]),
)
def test_agreement_is_over_the_entries_that_all_clients_hold(clients, common):
    made = [(moved(drawn(seed, common), kept), weight) for seed, kept, weight in clients]
    assert agreement(made) == pytest.approx(naive(made), rel=1e-9, abs=1e-9)


def test_clients_agree_wholly_halfway_or_not_at_all():
    same, opposite = drawn(0), {name: -tensor for name, tensor in drawn(0).items()}
    assert agreement([(moved(same), 3), (moved(same, 0.5), 5)]) == pytest.approx(1)
    assert agreement([(moved(same), 3), (moved(opposite), 3)]) == 0
    many = [(moved(drawn(seed, common=1.0)), 3) for seed in range(6)]
    assert agreement(many) == pytest.approx(0.5, abs=0.02)
    assert agreement([(moved(drawn(seed)), 3) for seed in range(6)]) == pytest.approx(0, abs=0.02)


def test_who_took_no_step_has_no_say_and_nobody_agrees_alone():
    pair = [(moved(drawn(0, 1.0)), 3), (moved(drawn(1, 1.0)), 4)]
    assert agreement(pair, idle=[(moved(drawn(2)), 100)]) == pytest.approx(agreement(pair))
    assert agreement(pair[:1]) == 0
    assert agreement([]) == 0
    still = {name: torch.zeros_like(tensor) for name, tensor in PARAMETERS.items()}
    assert agreement([(moved(still), 1), (moved(still), 1)]) == 0


@given(shares=st.lists(st.sampled_from([0.2, 0.25, 0.5, 1.0]), max_size=3))
def test_what_nobody_holds_is_counted_in_entries(shares):
    clients = [moved(drawn(0), kept) for kept in shares]
    masks = [torch.cat([mask.flatten() for mask in held.index_map.masks().values()]) for held in clients]
    size = sum(tensor.numel() for tensor in PARAMETERS.values())
    expected = size - int(torch.stack(masks).any(0).sum()) if masks else size
    assert sums_of([(held, 3) for held in clients]).unheld() == pytest.approx(expected / size, abs=1e-12)
    assert sums_of([], idle=[(held, 3) for held in clients]).unheld() == 1


@settings(max_examples=25, deadline=None)
@given(
    clients=st.lists(
        st.tuples(st.integers(0, 50), st.sampled_from([0.25, 0.5, 1.0]), st.integers(1, 40), st.booleans()),
        min_size=1,
        max_size=4,
    )
)
def test_gradient_square_and_coverage_are_sums_over_the_clients_that_hold_an_entry(clients):
    sums, weight_of_all = PseudoGradients(PARAMETERS), sum(weight for _, _, weight, _ in clients)
    expected = {name: torch.zeros(3, *tensor.shape, dtype=tensor.dtype) for name, tensor in PARAMETERS.items()}
    for seed, kept, weight, partly in clients:
        gradient = drawn(seed)
        part = moved(gradient, kept)
        active = {name: gradient[name] > 0 for name in list(PARAMETERS)[::2]} if partly else {}
        compact = {name: part.index_map.tensors[name].restrict(mask) for name, mask in active.items()}
        sums.add(dataclasses.replace(part, active=compact), weight, DISTANCE)
        for name, mask in part.index_map.masks().items():
            held = (mask & active[name] if name in active else mask).to(gradient[name])
            rows = torch.stack([gradient[name] * held, gradient[name].square() * held, held])
            expected[name] += weight / weight_of_all * rows
    for found, row in ((sums.gradient(), 0), (sums.square(), 1), (sums.coverage(), 2)):
        for name, tensor in found.items():
            torch.testing.assert_close(tensor, expected[name][row], rtol=1e-9, atol=1e-9)


def test_squares_of_small_changes_of_a_model_in_half_precision_are_not_zero():
    index_map = GROUPS.index_map(GROUPS.plan({}))
    before = {name: torch.zeros_like(tensor, dtype=torch.float16) for name, tensor in PARAMETERS.items()}
    after = {name: torch.full_like(tensor, -1e-4) for name, tensor in before.items()}
    sums = PseudoGradients(before)
    sums.add(TrainedPart(index_map, before, after), 10, DISTANCE)
    for square in sums.square().values():
        torch.testing.assert_close(square, torch.full_like(square, 4e-8, dtype=torch.float32), rtol=1e-2, atol=0)
