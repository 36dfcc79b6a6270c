"""The short ways to results on the meta device lead to PyTorch's own."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from hfp.reconstruct.coupling import meta_results
from hfp.reconstruct.coupling.meta_results import meta_result
from hfp.reconstruct.coupling.rules.registry import tensors_in

OPERATIONS = {
    "relu": F.relu, "hardtanh": F.relu6, "hardswish": F.hardswish, "hardsigmoid": F.hardsigmoid, "gelu": F.gelu,
    "mish": F.mish, "elu": F.elu, "leaky_relu": F.leaky_relu, "softplus": F.softplus, "sigmoid": F.sigmoid,
    "silu": F.silu, "tanh": F.tanh,
    "native_batch_norm": nn.BatchNorm2d(6, device="meta").eval(),
    "native_layer_norm": nn.LayerNorm((6, 3), device="meta"),
}  # fmt: skip
ELSEWHERE = {"_grouped_mm", "add", "addmm", "div", "mean", "mul", "sub"}
"""These short ways have tests of their own."""
ARITHMETIC = (torch.add, torch.sub, torch.mul, torch.div)
SHAPES = {"native_layer_norm": (2, 4, 6, 3)}


def described(results):
    return [(each.shape, each.stride(), each.dtype) for each in tensors_in(results)]


class Compared(TorchDispatchMode):
    """Checks every short way that is taken inside against what PyTorch returns."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name.split("::")[1].removesuffix("_")
        short = meta_result(function, name, args, kwargs)
        result = function(*args, **(kwargs or {}))
        if short is not None:
            self.seen.append(name)
            assert described(short) == described(result)
            assert (short is args[0]) == (result is args[0])
        return result


def test_every_short_way_is_tested():
    assert set(OPERATIONS) | ELSEWHERE == meta_results._LIKE_THE_INPUT | set(meta_results._OTHERS)


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("last", (False, True), ids=("contiguous", "channels_last"))
def test_a_short_way_gives_the_shapes_strides_and_types_of_pytorch(name, last):
    given = torch.empty(SHAPES.get(name, (2, 6, 4, 3)), device="meta")
    if last:
        given = given.contiguous(memory_format=torch.channels_last)
    with torch.no_grad(), Compared() as compared:
        OPERATIONS[name](given)
    assert compared.seen == [name]


@st.composite
def strided(draw, sizes):
    """A tensor on the meta device of these sizes, or 1 in place of some, in any order of strides."""
    order = draw(st.permutations(range(len(sizes))))
    sizes = [draw(st.sampled_from((size, 1))) for size in sizes]
    dtype = draw(st.sampled_from((torch.float32, torch.float32, torch.float64)))
    whole = torch.empty([sizes[dim] for dim in order], device="meta", dtype=dtype)
    return whole.permute([order.index(dim) for dim in range(len(sizes))])


@settings(deadline=None)
@given(st.data(), st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_sums_and_products_have_the_shapes_strides_and_types_of_pytorch(data, sizes):
    first, second = data.draw(strided(sizes)), data.draw(strided(sizes))
    with torch.no_grad(), Compared():
        data.draw(st.sampled_from(ARITHMETIC))(first, second)


@pytest.mark.parametrize("operation", ARITHMETIC)
def test_a_plain_sum_or_product_takes_the_short_way_and_others_do_not(operation):
    given, scale = torch.empty(2, 6, 4, 3, device="meta"), torch.empty(2, 6, 1, 1, device="meta")
    with torch.no_grad(), Compared() as compared:
        operation(given, scale)
        operation(given, given)
        operation(given, 3)
        operation(given, scale.double())
        operation(given, scale[0])
        operation(given, given.int())
    assert len(compared.seen) == 3


def test_a_sum_of_sizes_that_do_not_fit_is_left_to_pytorch():
    with torch.no_grad(), Compared(), pytest.raises(RuntimeError, match="broadcast"):
        torch.empty(2, 6, device="meta") + torch.empty(2, 5, device="meta")


@settings(deadline=None)
@given(st.data(), st.lists(st.integers(1, 4), min_size=1, max_size=4), st.booleans())
def test_a_mean_has_the_shape_strides_and_type_of_pytorch(data, sizes, keep):
    dims = data.draw(st.lists(st.integers(0, len(sizes) - 1), min_size=1, unique=True))
    with torch.no_grad(), Compared() as compared:
        torch.empty(sizes, device="meta").mean([dim - len(sizes) * (dim % 2) for dim in dims], keepdim=keep)
    assert compared.seen == ["mean"]


def test_a_mean_over_everything_or_of_another_type_is_left_to_pytorch():
    with torch.no_grad(), Compared() as compared:
        torch.empty(2, 3, device="meta").mean()
        torch.empty(2, 3, device="meta").mean(1, dtype=torch.float64)
    assert compared.seen == []


def test_a_linear_layer_has_the_shape_strides_and_type_of_pytorch():
    layer = nn.Linear(6, 5, device="meta")
    with torch.no_grad(), Compared() as compared:
        layer(torch.empty(2, 6, device="meta"))
        layer(torch.empty(2, 3, 6, device="meta"))
    assert compared.seen == ["addmm", "addmm"]


def test_a_linear_layer_that_does_not_fit_is_left_to_pytorch():
    with torch.no_grad(), Compared(), pytest.raises(RuntimeError, match="same reduction dim"):
        nn.Linear(6, 5, device="meta")(torch.empty(2, 7, device="meta"))


@pytest.mark.parametrize("name", ("relu", "hardswish", "leaky_relu"))
def test_in_place_operations_return_their_input(name):
    with torch.no_grad(), Compared() as compared:
        OPERATIONS[name](torch.empty(2, 6, device="meta"), inplace=True)
    assert compared.seen == [name]


def test_numbers_off_the_meta_device_are_left_to_pytorch():
    with torch.no_grad(), Compared() as compared:
        F.gelu(torch.zeros(3))
    assert compared.seen == []


@pytest.mark.skipif(not hasattr(F, "grouped_mm"), reason="this PyTorch has no grouped_mm")
def test_a_product_with_experts_has_the_shape_of_pytorchs_own_in_half_precision():
    rows, experts = torch.empty(8, 16, device="meta").bfloat16(), torch.empty(3, 16, 24, device="meta").bfloat16()
    with Compared() as compared:
        F.grouped_mm(rows, experts, offs=torch.empty(3, dtype=torch.int32, device="meta"))
    assert compared.seen == ["_grouped_mm"]


@pytest.mark.parametrize("layer", [nn.LayerNorm(6, elementwise_affine=False), nn.BatchNorm2d(6).eval()])
def test_there_is_no_short_way_where_shapes_do_not_fit(layer):
    with torch.no_grad(), Compared() as compared, pytest.raises(RuntimeError):
        layer.to("meta")(torch.empty(2, 5, 5, 5, device="meta"))
    assert not compared.seen
