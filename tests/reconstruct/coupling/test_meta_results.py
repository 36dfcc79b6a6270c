"""The short ways to results on the meta device lead to PyTorch's own."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from hfp.reconstruct.coupling import meta_results
from hfp.reconstruct.coupling.meta_results import meta_result
from hfp.reconstruct.coupling.rules.registry import tensors_in

OPERATIONS = {
    "relu": F.relu, "hardtanh": F.relu6, "hardswish": F.hardswish, "hardsigmoid": F.hardsigmoid, "gelu": F.gelu,
    "mish": F.mish, "elu": F.elu, "leaky_relu": F.leaky_relu, "softplus": F.softplus,
    "native_batch_norm": nn.BatchNorm2d(6, device="meta").eval(),
    "native_layer_norm": nn.LayerNorm((6, 3), device="meta"),
}  # fmt: skip
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
    assert set(OPERATIONS) | {"_grouped_mm"} == meta_results._LIKE_THE_INPUT | set(meta_results._OTHERS)


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("last", (False, True), ids=("contiguous", "channels_last"))
def test_a_short_way_gives_the_shapes_strides_and_types_of_pytorch(name, last):
    given = torch.empty(SHAPES.get(name, (2, 6, 4, 3)), device="meta")
    if last:
        given = given.contiguous(memory_format=torch.channels_last)
    with torch.no_grad(), Compared() as compared:
        OPERATIONS[name](given)
    assert compared.seen == [name]


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
