"""The facts about layer types agree with what PyTorch's layers compute."""

import ast
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

import hfp.layers
from hfp.layers.patches import columns
from hfp.layers.products import (
    channel_dim,
    counts_of,
    groups_of,
    is_depthwise,
    is_plain,
    multiplies_inputs,
    reads_single_channels,
    weight_dims,
    weight_entries,
)

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@pytest.mark.parametrize("kind", [nn.Linear, *CONVOLUTIONS, *TRANSPOSED])
def test_the_dimensions_of_a_weight_are_as_long_as_the_layer_has_channels(kind):
    layer = kind(4, 6) if kind is nn.Linear else kind(4, 6, 3, groups=2)
    out, read = weight_dims(layer)
    read_name, out_name = counts_of(layer)
    per_group = {True: (out,), False: (read,)}[kind in TRANSPOSED]
    for dim, count in ((out, getattr(layer, out_name)), (read, getattr(layer, read_name))):
        assert layer.weight.shape[dim] * (groups_of(layer) if dim in per_group else 1) == count
    assert multiplies_inputs(layer) == (kind in TRANSPOSED)
    assert is_plain(layer) == (kind not in TRANSPOSED)


@pytest.mark.parametrize("kind", [nn.Linear, *CONVOLUTIONS, *TRANSPOSED])
def test_entries_of_a_weight_are_counted_without_computing_it(kind):
    plain = kind(4, 6) if kind is nn.Linear else kind(4, 6, 3, groups=2)
    entries, layer = plain.weight.numel(), spectral_norm(plain)
    before = layer.parametrizations.weight[0]._u.clone()
    assert weight_entries(layer) == entries
    assert torch.equal(layer.parametrizations.weight[0]._u, before)


@pytest.mark.parametrize("kind", [nn.Linear, *CONVOLUTIONS, *TRANSPOSED])
def test_channels_lie_along_the_dimension_that_is_named(kind):
    layer = kind(4, 6) if kind is nn.Linear else kind(4, 6, 1)
    x = torch.randn(2, 4) if kind is nn.Linear else torch.randn(2, 4, *[5] * len(layer.kernel_size))
    assert x.shape[channel_dim(layer)] == 4
    assert layer(x).shape[channel_dim(layer)] == 6


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")  # it costs PyTorch a copy
@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(CONVOLUTIONS),
    st.integers(1, 3),
    st.integers(1, 2),
    st.integers(1, 2),
    st.sampled_from([0, 1, "same", "valid"]),
    st.sampled_from(["zeros", "circular", "reflect", "replicate"]),
    st.sampled_from([1, 2]),
)
def test_a_convolution_is_the_product_of_its_weight_and_its_patches(
    kind, size, stride, dilation, padding, mode, groups
):
    torch.manual_seed(0)
    layer = kind(
        4,
        6,
        size,
        1 if padding == "same" else stride,
        padding,
        dilation,
        groups,
        padding_mode=mode,
        bias=False,
        dtype=torch.float64,
    )
    x = torch.randn(2, 4, *[6] * len(layer.kernel_size), dtype=torch.float64)
    expected = layer(x).detach().flatten(2)
    found = columns(layer, x).unflatten(1, (groups, -1))
    weight = layer.weight.detach().flatten(1).unflatten(0, (groups, -1))
    torch.testing.assert_close(torch.einsum("goi,ngip->ngop", weight, found).flatten(1, 2), expected)


def test_depthwise_layers_are_told_from_those_that_read_single_channels():
    multiplied, depthwise, plain = nn.Conv2d(4, 8, 3, groups=4), nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 4, 3)
    assert [is_depthwise(layer) for layer in (multiplied, depthwise, plain)] == [False, True, False]
    assert [reads_single_channels(layer) for layer in (multiplied, depthwise, plain)] == [True, True, False]


def test_the_room_of_layer_facts_imports_no_other_room():
    for path in Path(hfp.layers.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module] if isinstance(node, ast.ImportFrom) else [a.name for a in getattr(node, "names", [])]
            for name in names if isinstance(node, ast.ImportFrom | ast.Import) else []:
                assert not name.startswith("hfp") or name.startswith("hfp.layers"), f"{path.name} imports {name}"
