"""Building compact models from parents, maps and states."""

from __future__ import annotations

import copy

import pytest
import torch
from networks.small import images, net
from torch import nn

from hfp.reconstruct import Coupling, IndexMap, MapError, TensorMap, compact_model


def prepared():
    parent = net("resnet")
    groups = Coupling.trace(parent, images(), ["head"])
    index_map = groups.index_map(groups.plan({"stem.0": [1, 4, 6], "blocks.1.body.1": range(5)}))
    return parent, index_map


def test_the_parent_is_not_changed():
    parent, index_map = prepared()
    before = copy.deepcopy(parent)
    compact = compact_model(parent, index_map)
    with torch.no_grad():
        for parameter in compact.parameters():
            parameter.zero_()
    assert all(
        torch.equal(a, b) for a, b in zip(parent.state_dict().values(), before.state_dict().values(), strict=True)
    )
    assert parent.stem[0].out_channels == 8
    assert compact.stem[0].out_channels == 3


def test_a_compact_state_fills_it():
    parent, index_map = prepared()
    state = {name: tensor * 2 for name, tensor in index_map.restrict(parent.state_dict()).items()}
    compact = compact_model(parent, index_map, state)
    assert list(compact.state_dict()) == list(state)
    assert all(torch.equal(tensor, state[name]) for name, tensor in compact.state_dict().items())
    with torch.no_grad():
        compact.stem[0].weight.zero_()
    assert state["stem.0.weight"].any()


def test_what_belongs_to_parameters_stays():
    parent, index_map = prepared()
    parent.train()
    parent.stem[0].weight.requires_grad_(False)
    parent(images()).sum().backward()
    compact = compact_model(parent, index_map)
    assert compact.training
    assert isinstance(compact.stem[0].weight, nn.Parameter)
    assert not compact.stem[0].weight.requires_grad
    assert compact.head.weight.requires_grad
    assert all(parameter.grad is None for parameter in compact.parameters())
    compact(images()).sum().backward()
    assert compact.head.weight.grad.shape == compact.head.weight.shape


def test_states_are_cast_to_the_parent():
    parent, index_map = prepared()
    state = {
        name: t.double() if t.is_floating_point() else t for name, t in index_map.restrict(parent.state_dict()).items()
    }
    assert compact_model(parent, index_map, state).stem[0].weight.dtype == torch.float32
    weightless = compact_model(copy.deepcopy(parent).to("meta"), index_map, state)
    assert weightless.stem[0].weight.device.type == "cpu"
    torch.testing.assert_close(weightless(images()), compact_model(parent, index_map)(images()))
    assert compact_model(copy.deepcopy(parent).to("meta"), index_map).stem[0].weight.is_meta


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("stem.0.weight"), "missing stem.0.weight"),
        (lambda state: state.update(extra=torch.zeros(1)), "unexpected extra"),
        (lambda state: state.update({"head.bias": torch.zeros(4)}), r"head.bias: expected the compact shape \[5\]"),
    ],
)
def test_other_states_are_refused(change, message):
    parent, index_map = prepared()
    state = index_map.restrict(parent.state_dict())
    change(state)
    with pytest.raises(MapError, match=message):
        compact_model(parent, index_map, state)


def test_maps_of_other_models_are_refused():
    _, index_map = prepared()
    with pytest.raises(MapError, match="not the full state of this map"):
        compact_model(net("vgg"), index_map)
    with pytest.raises(MapError, match="not the full state of this map"):
        compact_model(net("vgg"), index_map, {})


def bare(attributes=None, transient=None):
    model = nn.Linear(3, 2)
    model.register_buffer("window", torch.arange(3.0), persistent=False)
    return model, IndexMap(IndexMap.identity(model).tensors, attributes or {}, transient or {})


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"inner": {"x": 1}}, "no module 'inner'"),
        ({"": {"new": 1}}, r"model \(Linear\) has no plain attribute 'new'"),
        ({"": {"training": False}}, "no plain attribute 'training'"),
        ({"": {"_version": 1}}, "no plain attribute '_version'"),
        ({"": {"forward": 1}}, "no plain attribute 'forward'"),
        ({"": {"weight": 1}}, "no plain attribute 'weight'"),
        ({"": {"_parameters": 1}}, "no plain attribute '_parameters'"),
        ({"": {"__class__": 1}}, "no plain attribute '__class__'"),
        ({"": {"in_features": "3"}}, "model.in_features: expected a value like 3, got '3'"),
        ({"": {"in_features": True}}, "expected a value like 3, got True"),
        ({"": {"in_features": [3]}}, r"expected a value like 3, got \[3\]"),
        ({"": {"in_features": len}}, "expected a value like 3, got <built-in"),
    ],
)
def test_attributes_that_do_not_fit_are_refused(attributes, message):
    model, index_map = bare(attributes)
    with pytest.raises(MapError, match=message):
        compact_model(model, index_map)


def test_transient_buffers_are_cut_from_the_parent():
    model, index_map = bare(transient={"window": TensorMap((3,), (torch.tensor([0, 2]),))})
    assert compact_model(model, index_map).window.tolist() == [0, 2]
    for name, shape in (("missing", (3,)), ("window", (4,)), ("weight", (2, 3))):
        _, wrong = bare(transient={name: TensorMap.identity(shape)})
        with pytest.raises(MapError, match=f"{name}: expected a non-persistent buffer of shape"):
            compact_model(model, wrong)


def test_tied_names_need_equal_maps_and_values():
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    model[1].weight = model[0].weight
    half = TensorMap((2, 2), (torch.tensor([0]), None))
    parted = IndexMap({"0.weight": half, "1.weight": TensorMap.identity((2, 2))})
    with pytest.raises(MapError, match="0.weight and 1.weight share one tensor but keep different indices"):
        compact_model(model, parted)
    together = IndexMap({"0.weight": half, "1.weight": half})
    compact = compact_model(model, together)
    assert compact[0].weight is compact[1].weight
    with pytest.raises(MapError, match="0.weight and 1.weight share one tensor but are given different values"):
        compact_model(model, together, {"0.weight": torch.zeros(1, 2), "1.weight": torch.ones(1, 2)})


def test_an_encoder_that_is_left_with_an_odd_number_of_heads_runs_with_a_padding_mask():
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    model = nn.Sequential(nn.Linear(8, 32), nn.TransformerEncoder(layer, 1), nn.Linear(32, 4)).eval()
    coupling = Coupling.trace(model, torch.randn(2, 6, 8))
    kept = {"0": range(24), "1.layers.0.self_attn.in_proj_weight": range(3)}
    encoder = compact_model(model, coupling.index_map(coupling.plan(kept)))[1]
    assert encoder.layers[0].self_attn.num_heads == 3
    x, padding = torch.randn(2, 6, 24), torch.tensor([[False] * 6, [False] * 4 + [True] * 2])
    plain = encoder(x, src_key_padding_mask=padding)
    with torch.no_grad():
        torch.testing.assert_close(encoder(x, src_key_padding_mask=padding), plain)


@pytest.mark.parametrize(("dims", "form"), [(2, torch.channels_last), (3, torch.channels_last_3d)])
def test_filters_keep_their_memory_format(dims, form):
    kind = (nn.Conv2d, nn.Conv3d)[dims - 2]
    parent = nn.Sequential(kind(3, 8, 3), nn.ReLU(), kind(8, 4, 3)).to(memory_format=form)
    groups = Coupling.trace(parent, torch.randn(2, 3, *[6] * dims))
    index_map = groups.index_map(groups.plan({"0": [0, 2, 5]}))
    for state in (None, index_map.restrict(parent.state_dict())):
        for layer in compact_model(parent, index_map, state)[::2]:
            assert layer.weight.is_contiguous(memory_format=form) and not layer.weight.is_contiguous()
