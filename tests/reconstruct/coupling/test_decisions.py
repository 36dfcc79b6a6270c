"""Models whose values decide what runs, that draw random numbers, or whose code computes with sizes."""

import math
import random

import pytest
import torch
from networks.decisions import MOVING, RANDOM, ROWS, linear
from networks.operations import Net, conv
from torch import nn

from hfp.reconstruct import Coupling, IndexMap, Plan, TensorMap, compact_model
from hfp.reconstruct.coupling.checking import compare


def made(make, shape):
    torch.manual_seed(1)
    return make().double().eval(), torch.randn(shape, dtype=torch.float64)


def half(coupling: Coupling) -> Plan:
    chance = random.Random(0)
    kept = {}
    for names in coupling.linked:
        parts = math.gcd(*(coupling.sizes[name] for name in names))
        for name in names:
            left = coupling.sizes[name] * (parts - parts // 2) // parts
            kept[name] = sorted(chance.sample(range(coupling.sizes[name]), left))
    return coupling.plan(kept)


def masked(model: nn.Module, index_map: IndexMap) -> nn.Module:
    """The full model with zeros in place of what a map removes, made by hand."""
    state = {name: tensor * index_map.tensors[name].mask() for name, tensor in model.state_dict().items()}
    own = compact_model(model, IndexMap.identity(model))
    own.load_state_dict(state)
    return own


@pytest.mark.parametrize("name", MOVING)
def test_rows_that_move_or_are_chosen_by_value_do_not_keep_channels(name):
    model, x = made(*MOVING[name])
    coupling = Coupling.trace(model, x)
    plan = half(coupling)
    assert coupling.checked(model, x, plan) is coupling
    assert coupling.verified(model, x) is coupling
    index_map = coupling.index_map(plan)
    assert index_map.kept_entries < 0.75 * index_map.full_entries
    with torch.no_grad():
        found, expected = compact_model(model, index_map)(x), masked(model, index_map)(x)
        full = model(x)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)
    assert full.shape != found.shape or not torch.allclose(full, found, rtol=1e-3)
    assert not coupling.unknown


@pytest.mark.parametrize("name", RANDOM)
def test_models_that_draw_random_numbers_are_checked_with_the_same_ones(name):
    model, x = made(*RANDOM[name])
    torch.manual_seed(5)
    random.seed(5)
    before = torch.get_rng_state(), random.getstate()
    coupling = Coupling.trace(model, x)
    plan = half(coupling)
    assert coupling.checked(model, x, plan) is coupling
    assert coupling.verified(model, x) is coupling
    index_map = coupling.index_map(plan)
    assert index_map.kept_entries < 0.75 * index_map.full_entries
    compact_model(model, index_map)(x)
    if name != "layers repeated by chance" and name != "dropout in evaluation" and "sample" not in name:
        assert torch.equal(torch.get_rng_state(), before[0])
        assert random.getstate() == before[1]


def test_following_and_checking_leave_the_random_state_alone():
    model, x = made(*RANDOM["dropout in evaluation"])
    before = torch.get_rng_state()
    coupling = Coupling.trace(model, x)
    coupling.checked(model, x, half(coupling))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_wrong_map_is_still_found_where_random_numbers_are_replayed():
    model, x = made(*RANDOM["dropout in evaluation"])
    coupling = Coupling.trace(model, x)
    plan = half(coupling)
    right = coupling.index_map(plan)
    read = right.tensors["head.weight"]
    others = torch.tensor([place for place in range(10) if place not in read.kept[1].tolist()])
    wrong = IndexMap({**right.tensors, "head.weight": TensorMap(read.shape, (None, others))}, right.attributes)
    gone = coupling._wiring.gone(plan.kept)
    assert compare(coupling._wiring, model, x, gone, right).difference is None
    assert compare(coupling._wiring, model, x, gone, wrong).difference is not None


def scaled_by_size(reads):
    def body(s, x):
        y = s.a(x).relu()[:, None].expand(-1, 3, -1)
        q, k, v = s.q(y), s.k(y), s.v(y)
        return s.head((q @ k.transpose(-2, -1) / math.sqrt(reads(q))).softmax(-1) @ v)

    return Net(body, a=linear(), q=linear(10), k=linear(10), v=linear(10), head=linear(10, 3))


@pytest.mark.parametrize("reads", [lambda q: q.size(-1), lambda q: q.shape[-1], lambda q: q[0].numel() / 3])
def test_code_that_computes_with_a_size_keeps_that_dimension_and_no_other(reads):
    model, x = made(lambda: scaled_by_size(reads), ROWS)
    coupling = Coupling.trace(model, x).verified(model, x)
    assert set(coupling.sizes) == {"a", "v"}
    for name in ("q", "k"):
        assert coupling.left_alone[name] == "the model: div depends on the size of this dimension"


def test_a_mean_written_as_a_sum_over_a_size_keeps_what_it_is_taken_over():
    def body(s, x):
        y = s.a(x).relu()
        return s.head(s.b(y - y.sum(1, keepdim=True) / y.size(1)).relu())

    model, x = made(lambda: Net(body, a=conv(3, 8), b=conv(8, 8), head=conv(8, 2)), (2, 3, 6, 6))
    coupling = Coupling.trace(model, x).verified(model, x)
    assert set(coupling.sizes) == {"b"}


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = linear(10), linear(10), linear(10)

    def forward(self, x):
        q, k = self.q(x), self.k(x)
        return (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1) @ self.v(x)


def test_what_is_left_alone_in_one_block_is_left_alone_in_all_that_are_alike():
    """Found one by one they would take more checks than there are."""

    def body(s, x):
        y = s.a(x)[:, None].expand(-1, 3, -1)
        for block in s.blocks:
            y = y + block(y)
        return s.head(y)

    blocks = nn.ModuleList(Block() for _ in range(14))
    model, x = made(lambda: Net(body, a=linear(), blocks=blocks, head=linear(10, 3)), ROWS)
    assert set(Coupling.trace(model, x).verified(model, x).sizes) == {"a"}


@pytest.mark.parametrize("over", [lambda y: y.amax(1, keepdim=True), lambda y: y.max(1, keepdim=True).values])
def test_the_largest_over_channels_is_that_of_the_channels_left(over):
    def body(s, x):
        y = s.a(x)  # negative values too: a removed channel must not count as a zero
        return s.head(y * s.gate(over(y) - 3).sigmoid())

    model, x = made(lambda: Net(body, a=conv(3, 8), gate=conv(1, 1), head=conv(8, 2)), (2, 3, 6, 6))
    coupling = Coupling.trace(model, x)
    plan = half(coupling)
    assert coupling.checked(model, x, plan) is coupling
    index_map, kept = coupling.index_map(plan), list(plan.kept["a"])
    y = model.a(x)[:, kept]
    by_hand = nn.functional.conv2d(
        y * model.gate(y.amax(1, keepdim=True) - 3).sigmoid(), model.head.weight[:, kept], model.head.bias, padding=1
    )
    torch.testing.assert_close(compact_model(model, index_map)(x), by_hand, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(coupling.masked_output(model, x, index_map), by_hand, rtol=1e-9, atol=1e-11)


def test_channels_whose_number_is_read_stay():
    model, x = made(
        lambda: Net(lambda s, x: s.head(s.a(x) + s.a(x).max(1, keepdim=True).indices), a=linear(), head=linear(10, 3)),
        ROWS,
    )
    assert "number of a chosen index" in Coupling.trace(model, x).left_alone["a"]
    returned, x = made(lambda: Net(lambda s, x: s.a(x).max(1), a=linear()), ROWS)
    assert "number of a chosen index" in Coupling.trace(returned, x).left_alone["a"]


def test_layers_of_ones_own_say_why_nothing_can_be_removed():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(10, 6))

        def forward(self, x):
            return torch.linalg.qr(x @ self.weight.T).Q

    coupling = Coupling.trace(Own(), torch.randn(5, 6))
    assert not coupling.sizes
    assert "linalg_qr is not followed" in coupling.why_nothing


def test_the_masked_full_model_decides_for_itself_on_other_inputs():
    """A threshold that other rows pass: what the trace decided is not what these inputs decide."""

    def body(s, x):
        y = s.b(s.a(x).relu())
        return s.head(torch.where(y > 0, y, -2 * y))

    model, x = made(lambda: Net(body, a=linear(), b=linear(10), head=linear(10, 3)), (5, 6))
    coupling = Coupling.trace(model, x)
    index_map, other = coupling.index_map(half(coupling)), -x
    with torch.no_grad():
        found = compact_model(model, index_map)(other)
    torch.testing.assert_close(coupling.masked_output(model, other, index_map), found, rtol=1e-9, atol=1e-11)


def test_a_view_of_no_rows_keeps_the_channels_that_it_regroups_and_no_others():
    def body(s, x):
        y = s.b(s.a(x).relu())
        return s.head(y), y[y.square().sum(1) < 0].reshape(-1, 5)

    model, x = made(lambda: Net(body, a=linear(), b=linear(10), head=linear(10, 3)), (5, 6))
    coupling = Coupling.trace(model, x)
    assert coupling.names == ("a",)
    assert "a tensor without entries" in coupling.left_alone["b"]
