"""Files of pruned models: round trips, the pinned format, and hostile or damaged files."""

from __future__ import annotations

import builtins
import copy
import io
import json
import os
import pickle
import socket
import stat
import struct
from functools import partial
from pathlib import Path

import pytest
import timm
import torch
from cutting import cut
from hypothesis import given
from hypothesis import strategies as st
from networks.small import NETS, images, net
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from hfp.reconstruct import (
    Coupling,
    IndexMap,
    MapError,
    Pruned,
    TensorMap,
    TimmModel,
    compact_model,
    load_pruned,
    read_pruned,
    record,
    save_index_map,
    save_pruned,
)
from hfp.reconstruct.files import skeletons as skeletons_module

GOLDEN = Path(__file__).with_name("golden.safetensors")
with safe_open(GOLDEN, framework="pt") as golden:
    GOLDEN_TEXT = golden.metadata()["hfp"]
TINY = TimmModel("test_resnet", {"num_classes": 3})


def pruned(name):
    """A full model, its compact one and the map."""
    full = net(name)
    groups = Coupling.trace(full, images(), ["head"])
    index_map = groups.index_map(groups.plan({name: range(0, size, 2) for name, size in groups.sizes.items()}))
    return full, compact_model(full, index_map), index_map


@pytest.mark.parametrize("name", NETS)
def test_a_saved_model_comes_back_as_it_was(name, tmp_path):
    full, compact, index_map = pruned(name)
    metadata = {"criterion": "l1", "budget": {"macs": 0.5}, "note": None}
    path = save_pruned(Pruned(compact, index_map), tmp_path / "m.safetensors", metadata=metadata)
    skeleton = net(name, seed=1)
    before = copy.deepcopy(skeleton.state_dict())
    again = load_pruned(path, skeleton)
    assert again.index_map == index_map
    assert dict(again.metadata) == metadata
    assert not again.model.training
    assert torch.equal(again.model(images()), compact(images()))
    assert list(again.model.state_dict()) == list(compact.state_dict())
    assert all(torch.equal(tensor, before[key]) for key, tensor in skeleton.state_dict().items())
    restored = again.index_map.embed(again.model.state_dict(), into=full.state_dict())
    assert all(torch.equal(tensor, full.state_dict()[key]) for key, tensor in restored.items())


def test_other_things_than_a_pruned_model_and_its_full_one_are_told(tmp_path):
    model = nn.Linear(4, 2)
    with pytest.raises(MapError, match="expected what hfp.prune returned, or a Pruned .*; found a Linear$"):
        save_pruned(model, tmp_path / "small.safetensors")
    with pytest.raises(MapError, match="found a Pruned with a dict"):
        save_pruned(Pruned(model, {}, {}), tmp_path / "small.safetensors")
    path = save_pruned(Pruned(model, IndexMap.identity(model), {}), tmp_path / "small.safetensors")
    with pytest.raises(MapError, match="the skeleton is the full model, a module, not <class 'torch.nn"):
        load_pruned(path, nn.Linear)


def test_a_timm_model_needs_no_skeleton(tmp_path):
    full = TINY.create()
    x = torch.randn(2, 3, 32, 32)
    groups = Coupling.trace(full, x, [full.get_classifier()])
    index_map = groups.index_map(groups.plan({name: range(0, size, 2) for name, size in groups.sizes.items()}))
    compact = compact_model(full, index_map).eval()
    path = save_pruned(Pruned(compact, index_map), tmp_path / "m.safetensors", timm=TINY)
    again = load_pruned(path)
    assert torch.equal(again.model(x), compact(x))
    assert read_pruned(path).timm == TINY


def test_a_file_is_plain_safetensors_of_the_compact_state(tmp_path):
    _, compact, index_map = pruned("resnet")
    path = save_pruned(Pruned(compact, index_map), tmp_path / "m.safetensors")
    found = load_file(path)
    for name, tensor in compact.state_dict().items():
        assert torch.equal(found.pop(name), tensor)
    assert set(found) == {f"hfp/kept/{number}" for number in range(len(found))}
    bytes_of_state = sum(t.numel() * t.element_size() for t in compact.state_dict().values())
    assert path.stat().st_size < bytes_of_state + 16_000


def test_types_and_values_survive(tmp_path):
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.shape, self.sizes, self.rate, self.flag, self.mode = (4, (2,)), [4, [1.5]], 0.1, True, "a"
            self.coarse = nn.Parameter(torch.randn(4).to(torch.bfloat16), requires_grad=False)
            self.register_buffer("count", torch.tensor(3))
            self.register_buffer("flags", torch.tensor([True, False, True, True]))
            self.register_buffer("empty", torch.zeros(0, 2))
            self.register_buffer("window", torch.arange(4.0), persistent=False)

    kept = TensorMap((4,), (torch.tensor([1, 3]),))
    tensors = {**IndexMap.identity(Odd()).tensors, "coarse": kept, "flags": kept}
    attributes = {"": {"shape": (2, (1,)), "sizes": [2, [0.1 + 0.2]], "rate": 1e-300, "flag": False, "mode": "é\n"}}
    index_map = IndexMap(tensors, attributes, {"window": kept})
    full = Odd()
    path = save_pruned(Pruned(compact_model(full, index_map), index_map), tmp_path / "m.safetensors")
    again = load_pruned(path, Odd())
    assert again.index_map == index_map
    assert {key: vars(again.model)[key] for key in attributes[""]} == attributes[""]
    assert type(again.model.shape) is tuple
    assert again.model.coarse.dtype == torch.bfloat16
    assert torch.equal(again.model.coarse, full.coarse[[1, 3]])
    assert not again.model.coarse.requires_grad
    assert again.model.window.tolist() == [1, 3]


def test_the_files_dtype_wins_over_the_skeletons(tmp_path):
    full, compact, index_map = pruned("vgg")
    path = save_pruned(Pruned(compact.half(), index_map), tmp_path / "m.safetensors")
    assert load_pruned(path, full).model.head.weight.dtype == torch.float16


class Shared(nn.Module):
    def __init__(self, tie=True):
        super().__init__()
        self.enter, self.leave = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
        if tie:
            self.leave.weight = self.enter.weight


def test_filters_have_the_memory_format_of_the_skeleton(tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    path = save_pruned(Pruned(model, IndexMap.identity(model)), tmp_path / "m.safetensors")
    last = copy.deepcopy(model).to(memory_format=torch.channels_last)
    assert load_pruned(path, model).model[0].weight.is_contiguous()
    for found, layer in zip(load_pruned(path, last).model[::2], model[::2], strict=True):
        assert found.weight.is_contiguous(memory_format=torch.channels_last) and not found.weight.is_contiguous()
        assert torch.equal(found.weight, layer.weight)


def test_tied_tensors_are_stored_once_and_stay_tied(tmp_path):
    model = Shared()
    path = save_pruned(Pruned(model, IndexMap.identity(model)), tmp_path / "m.safetensors")
    assert list(load_file(path)) == ["enter.weight"]
    assert dict(read_pruned(path).tied) == {"leave.weight": "enter.weight"}
    again = load_pruned(path, Shared()).model
    assert again.enter.weight is again.leave.weight
    untied = load_pruned(path, Shared(tie=False)).model
    with torch.no_grad():
        untied.enter.weight.zero_()
    assert untied.leave.weight.any()


def test_recorded_surgery_with_transient_buffers_comes_back(tmp_path):
    model = net("scaled")
    full = copy.deepcopy(model)
    with record(model, images()) as recording:
        cut(model, {"branch.0": range(5), "branch.2": [0, 3, 4]})
    path = save_pruned(Pruned(model, recording.index_map), tmp_path / "m.safetensors")
    assert torch.equal(load_pruned(path, full).model(images()), model(images()))


def test_a_state_may_be_given_instead_of_a_model(tmp_path):
    full, compact, index_map = pruned("vgg")
    path = save_pruned(Pruned(index_map.restrict(full.state_dict()), index_map), tmp_path / "m.safetensors")
    assert torch.equal(load_pruned(path, full).model(images()), compact(images()))


def test_the_file_says_what_wrote_it(tmp_path):
    _, compact, index_map = pruned("vgg")
    found = read_pruned(save_pruned(Pruned(compact, index_map), tmp_path / "m.safetensors")).libraries
    assert found["torch"] == torch.__version__.split("+")[0]
    assert set(found) == {"hfp", "torch", "torch-pruning", "timm", "safetensors"}


# The pinned format: a file written by the first version has to stay readable, and writing has to stay the same.


class Golden(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4)
        self.fc, self.out = nn.Linear(4, 3), nn.Linear(3, 3)
        self.twin = nn.Linear(3, 3, bias=False)
        self.twin.weight, self.shape, self.scale = self.out.weight, (4, 3), 2
        self.register_buffer("window", torch.arange(4.0), persistent=False)


def golden_parts():
    full = Golden()
    for number, tensor in enumerate(full.state_dict().values()):
        tensor.copy_((torch.arange(tensor.numel()).view(tensor.shape) + number).to(tensor.dtype) / (2 if number else 1))
    rows, columns = torch.tensor([0, 2, 3]), torch.tensor([1])
    tensors = {
        name: TensorMap(tensor.shape, tuple(rows if size == 4 else None for size in tensor.shape))
        for name, tensor in IndexMap.identity(full).tensors.items()
    }
    tensors["out.weight"] = tensors["twin.weight"] = TensorMap((3, 3), (columns, None))
    tensors["out.bias"] = TensorMap((3,), (columns,))
    attributes = {
        "conv": {"out_channels": 3}, "norm": {"num_features": 3}, "fc": {"in_features": 3},
        "out": {"out_features": 1}, "twin": {"out_features": 1}, "": {"shape": (3, 1), "scale": 0.5},
    }  # fmt: skip
    index_map = IndexMap(tensors, attributes, {"window": TensorMap((4,), (rows,))})
    return full, index_map, {"criterion": "l1", "budget": {"macs": 0.5}}


def header(path):
    with safe_open(path, framework="pt") as file:
        document = json.loads(file.metadata()["hfp"])
        return document, {name: (file.get_slice(name).get_dtype(), file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118


def test_the_golden_file_is_read_as_ever():
    full, index_map, metadata = golden_parts()
    found = load_pruned(GOLDEN, Golden())
    assert found.index_map == index_map
    assert found.metadata == metadata
    expected = compact_model(full, index_map)
    for name, tensor in expected.state_dict().items():
        assert torch.equal(found.model.state_dict()[name], tensor)
    assert found.model.window.tolist() == [0, 2, 3]
    assert (found.model.shape, found.model.scale) == ((3, 1), 0.5)


def test_the_golden_file_is_written_as_ever(tmp_path):
    full, index_map, metadata = golden_parts()
    path = save_pruned(Pruned(compact_model(full, index_map), index_map), tmp_path / "m.safetensors", metadata=metadata)
    (found, tensors), (expected, golden) = header(path), header(GOLDEN)
    assert found.pop("libraries").keys() == expected.pop("libraries").keys()
    assert found == expected
    assert list(found["tensors"]) == list(expected["tensors"])
    assert tensors.keys() == golden.keys()
    for name, (dtype, tensor) in tensors.items():
        assert dtype == golden[name][0]
        assert torch.equal(tensor, golden[name][1])


# Hostile and damaged files. Each case changes one thing in a good file.


def good(tmp_path):
    full, index_map, metadata = golden_parts()
    return save_pruned(
        Pruned(compact_model(full, index_map), index_map), tmp_path / "good.safetensors", metadata=metadata
    )


def changed(tmp_path, document=None, tensors=None, text=None):
    path = good(tmp_path)
    parts, state = header(path)[0], load_file(path)
    if document:
        document(parts)
    if tensors:
        tensors(state)
    found = tmp_path / "changed.safetensors"
    save_file(state, found, metadata={"hfp": json.dumps(parts) if text is None else text})
    return found


def setter(*keys):
    *way, last, value = keys

    def change(parts):
        for key in way:
            parts = parts[key]
        parts[last] = value

    return change


def test_the_way_to_change_a_file_leaves_a_good_one_good(tmp_path):
    assert load_pruned(changed(tmp_path), Golden()).index_map == golden_parts()[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (setter("format", 2), "expected format version 1, found 2"),
        (setter("format", "1"), "expected format version 1, found '1'"),
        (setter("format", True), "expected format version 1, found True"),
        (lambda parts: parts.pop("format"), "expected format version 1, found None"),
        (setter("extra", 1), "the description: expected an object with attributes, .*found .*'extra'"),
        (lambda parts: parts.pop("tied"), "the description: expected an object with"),
        (setter("tensors", []), "tensors: expected an object, found list"),
        (setter("tensors", "fc.bias", 3), "fc.bias: expected an object with kept, shape"),
        (setter("tensors", "fc.bias", "more", 1), "fc.bias: expected an object with kept, shape"),
        (setter("tensors", "fc.bias", "shape", [-3]), "fc.bias: expected a shape of non-negative integers"),
        (setter("tensors", "fc.bias", "shape", [3.0]), "fc.bias: expected a shape of non-negative integers"),
        (setter("tensors", "fc.bias", "shape", 3), "fc.bias: expected a shape of non-negative integers"),
        (setter("tensors", "fc.bias", "shape", [3, 1]), "fc.bias: expected one number of an index vector"),
        (setter("tensors", "fc.bias", "kept", None), "fc.bias: expected one number of an index vector"),
        (setter("tensors", "fc.bias", "kept", ["0"]), "fc.bias: expected one number of an index vector"),
        (setter("tensors", "fc.bias", "kept", [9]), "not those it describes; missing .'hfp/kept/9'"),
        (setter("tensors", "fc.bias", "kept", [1]), r"fc.bias has shape \[3\], its indices say \[1\]"),
        (setter("tensors", "fc.bias", "shape", [10**30]), "fc.bias has shape .3., its indices say .1000000000000"),
        (setter("tensors", "conv.weight", "shape", [10**12, 2, 3, 3]), "conv.weight: expected the full shape"),
        (setter("tensors", "conv.weight", "shape", [3, 2, 3, 3]), r"conv.weight: dimension 0 of .* in \[0, 3\)"),
        (setter("tensors", "new", {"shape": [], "kept": []}), "not those it describes; missing .'new'"),
        (lambda parts: parts["tensors"].pop("fc.bias"), "not those it describes.*unexpected .'fc.bias'"),
        (setter("transient", "window", "shape", [5]), "window: expected a non-persistent buffer of shape"),
        (setter("transient", "window", "kept", [7]), "missing .'hfp/kept/7'"),
        (setter("transient", "other", {"shape": [2], "kept": [None]}), "other: expected a non-persistent buffer"),
        (setter("transient", "fc.bias", {"shape": [3], "kept": [None]}), "fc.bias: expected a non-persistent buffer"),
        (setter("tied", "fc.bias", "out.bias"), "unexpected .'fc.bias'"),
        (setter("tied", "new", "out.bias"), "ties 'new' to 'out.bias', which it does not hold"),
        (setter("tied", "fc.bias", 1), "tied: expected strings only"),
        (setter("attributes", "fc", "in_features", "3"), "in_features: expected a value like 4, got '3'"),
        (setter("attributes", "fc", "in_features", {"tuple": 3}), "fc.in_features: expected a list of values"),
        (setter("attributes", "fc", "in_features", {"os": [1]}), "fc.in_features: expected an object with tuple"),
        (setter("attributes", "fc", {"forward": 1}), "has no plain attribute 'forward'"),
        (setter("attributes", "fc", {"__class__": "Evil"}), "has no plain attribute '__class__'"),
        (setter("attributes", "fc", {"_forward_hooks": []}), "has no plain attribute '_forward_hooks'"),
        (setter("attributes", "nowhere", {"x": 1}), "no module 'nowhere'"),
        (setter("attributes", "fc", 3), "attributes of fc: expected an object, found 3"),
        (setter("skeleton", "resnet18"), "skeleton: expected an object with arguments, timm"),
        (setter("skeleton", {"timm": 3, "arguments": {}}), "skeleton: expected the name of a timm model"),
        (setter("skeleton", {"timm": "hf-hub:evil/model", "arguments": {}}), "timm has no model 'hf-hub:evil/model'"),
        (setter("skeleton", {"timm": "local-dir:/tmp", "arguments": {}}), "timm has no model 'local-dir:/tmp'"),
        (
            setter("skeleton", {"timm": "resnet18", "arguments": {"checkpoint_path": "/tmp/evil.pth"}}),
            "argument 'checkpoint_path' of resnet18 can't be kept in a file",
        ),
        (setter("skeleton", {"timm": "resnet18", "arguments": {"pretrained": True}}), "'pretrained' of resnet18 can't"),
        (setter("skeleton", {"timm": "resnet18", "arguments": {"num_classes": 10**15}}), "must be a plain value up to"),
        (setter("metadata", 3), "metadata: expected an object, found int"),
        (setter("libraries", {"torch": 2}), "libraries: expected strings only"),
    ],
)
def test_wrong_descriptions_are_refused_and_nothing_is_changed(change, message, tmp_path):
    path = changed(tmp_path, document=change)
    skeleton = Golden()
    before = copy.deepcopy(skeleton)
    with pytest.raises(MapError, match=message):
        load_pruned(path, skeleton)
    assert all(
        torch.equal(a, b) for a, b in zip(skeleton.state_dict().values(), before.state_dict().values(), strict=True)
    )
    assert skeleton.fc.in_features == 4
    assert skeleton.scale == 2


def replaced(name, value):
    return lambda state: state.update({name: value})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (replaced("hfp/kept/0", torch.tensor([0, 2, 4])), r"in \[0, 4\), got 0 2 4"),
        (replaced("hfp/kept/0", torch.tensor([-1, 2, 3])), r"in \[0, 4\), got -1 2 3"),
        (replaced("hfp/kept/0", torch.tensor([0, 2, 2])), "ascending indices without repeats"),
        (replaced("hfp/kept/0", torch.tensor([2, 0, 3])), "ascending indices without repeats"),
        (replaced("hfp/kept/0", torch.tensor([0, 2])), r"conv.weight has shape \[3, 2, 3, 3\], its indices say \[2, 2"),
        (replaced("hfp/kept/0", torch.zeros(0, dtype=torch.int64)), "no index is kept"),
        (
            replaced("hfp/kept/0", torch.tensor([0, 2, 3], dtype=torch.int32)),
            "expected a vector of int64 indices, got I32",
        ),
        (replaced("hfp/kept/0", torch.tensor([[0, 2, 3]])), "expected a vector of int64 indices"),
        (replaced("hfp/kept/9", torch.tensor([0])), "unexpected .'hfp/kept/9'"),
        (replaced("fc.bias", torch.zeros(4)), r"fc.bias has shape \[4\], its indices say \[3\]"),
        (replaced("extra", torch.zeros(4)), "unexpected .'extra'"),
        (lambda state: state.pop("fc.bias"), "missing .'fc.bias'"),
        (
            replaced("fc.bias", torch.zeros(3, dtype=torch.int64)),
            "fc.bias is torch.int64, the skeleton has torch.float32",
        ),
    ],
)
def test_wrong_tensors_are_refused(change, message, tmp_path):
    with pytest.raises(MapError, match=message):
        load_pruned(changed(tmp_path, tensors=change), Golden())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "damaged"),
        ("not json", "damaged"),
        ("[" * 100_000, "damaged"),
        ('{"format": 1, "format": 1}', "a key is repeated"),
        ('{"format": NaN}', "NaN is no JSON number"),
        ('{"format": 1' + "0" * 5000 + "}", "damaged"),
        ("[1]", "expected format version 1, found None"),
    ],
)
def test_descriptions_that_are_no_document_are_refused(text, message, tmp_path):
    with pytest.raises(MapError, match=message):
        read_pruned(changed(tmp_path, text=text))


def test_other_safetensors_files_are_refused(tmp_path):
    path = tmp_path / "plain.safetensors"
    save_file({"w": torch.zeros(2)}, path)
    with pytest.raises(MapError, match="plain.safetensors holds no pruned model: expected a file of hfp prune"):
        read_pruned(path)


def test_pickles_are_not_opened(tmp_path):
    path = tmp_path / "m.safetensors"

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    for write in (lambda: path.write_bytes(pickle.dumps(Evil())), lambda: torch.save({"w": torch.zeros(1)}, path)):
        write()
        with pytest.raises(MapError, match="is not a whole safetensors file"):
            load_pruned(path, Golden())
    assert not (tmp_path / "ran").exists()


@given(st.floats(0, 1, exclude_max=True))
def test_truncated_files_are_refused(tmp_path_factory, share):
    whole = GOLDEN.read_bytes()
    path = tmp_path_factory.mktemp("cut") / "m.safetensors"
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(MapError, match="is not a whole safetensors file"):
        load_pruned(path, Golden())


@given(st.integers(0, GOLDEN.stat().st_size - 1), st.integers(1, 255))
def test_a_changed_byte_is_refused_or_changes_a_value(tmp_path_factory, place, difference):
    """Whatever byte is hit: a clear error, or a model of the right shapes. Never another exception."""
    damaged = bytearray(GOLDEN.read_bytes())
    damaged[place] ^= difference
    path = tmp_path_factory.mktemp("hit") / "m.safetensors"
    path.write_bytes(bytes(damaged))
    try:
        found = load_pruned(path, Golden())
    except MapError:
        return
    assert found.index_map.tensors.keys() == golden_parts()[1].tensors.keys()


def test_huge_claims_allocate_nothing(tmp_path):
    """A header that promises more than the file holds; and one that is longer than the file."""
    path = tmp_path / "m.safetensors"
    claim = json.dumps({"w": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}).encode()
    for start in (struct.pack("<Q", len(claim)), struct.pack("<Q", 2**60)):
        path.write_bytes(start + claim)
        with pytest.raises(MapError, match="is not a whole safetensors file"):
            read_pruned(path)


def test_files_that_are_none_are_refused(tmp_path):
    with pytest.raises(MapError, match="there is no file"):
        read_pruned(tmp_path / "none.safetensors")
    with pytest.raises(MapError, match="is not a whole safetensors file"):
        read_pruned(tmp_path)


def test_a_skeleton_is_needed_and_has_to_fit(tmp_path):
    full, compact, index_map = pruned("vgg")
    path = save_pruned(Pruned(compact, index_map), tmp_path / "m.safetensors")
    with pytest.raises(MapError, match="names no timm model; give the full model as `skeleton`"):
        load_pruned(path)
    with pytest.raises(MapError, match="the skeleton ResNet is not the model that was pruned: .*missing features"):
        load_pruned(path, net("resnet"))
    with pytest.raises(MapError, match="the skeleton Vgg is not the model that was pruned: features.0.0.weight"):
        load_pruned(path, compact)


def test_a_timm_model_that_is_not_the_one_pruned_is_refused(tmp_path):
    full, compact, index_map = pruned("vgg")
    with pytest.raises(MapError, match="test_resnet: the skeleton ResNet is not the model that was pruned"):
        save_pruned(Pruned(compact, index_map), tmp_path / "m.safetensors", timm=TINY)
    assert not list(tmp_path.iterdir())
    path = changed(tmp_path, document=setter("skeleton", {"timm": "test_resnet", "arguments": {"num_classes": 3}}))
    with pytest.raises(MapError, match="the skeleton ResNet is not the model that was pruned"):
        load_pruned(path)


def test_no_weights_are_made_for_a_wrong_timm_model(tmp_path, monkeypatch):
    made = []
    create = timm.create_model
    monkeypatch.setattr(
        timm, "create_model", lambda *args, **options: made.append(create(*args, **options)) or made[-1]
    )
    path = changed(tmp_path, document=setter("skeleton", {"timm": "test_resnet", "arguments": {"num_classes": 3}}))
    with pytest.raises(MapError, match="is not the model that was pruned"):
        load_pruned(path)
    assert all(parameter.is_meta for model in made for parameter in model.parameters())
    assert made


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("resnet-18", {}, "timm has no model 'resnet-18'"),
        ("hf-hub:timm/resnet18.a1_in1k", {}, "timm has no model"),
        ("resnet18", {"pretrained_cfg": {}}, "argument 'pretrained_cfg' of resnet18 can't be kept in a file"),
        ("resnet18", {"norm_layer": nn.BatchNorm2d}, "argument 'norm_layer' of resnet18 must be a plain value"),
        ("resnet18", {"img_size": [32, 10**9]}, "argument 'img_size' of resnet18 must be a plain value up to"),
    ],
)
def test_timm_models_that_a_file_may_not_name(name, arguments, message):
    with pytest.raises(MapError, match=message):
        TimmModel(name, arguments)


def test_arguments_that_timm_rejects():
    with pytest.raises(MapError, match="timm can't create test_resnet with .*window_size"):
        TimmModel("test_resnet", {"window_size": 3}).create()
    assert skeletons_module.ARGUMENTS.isdisjoint({"pretrained", "checkpoint_path", "pretrained_cfg", "cache_dir"})


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"x": object()}, "plain JSON values"),
        ({"x": float("nan")}, "plain JSON values"),
        ({"x": torch.ones(1)}, "plain JSON"),
    ],
)
def test_metadata_that_json_can_not_hold_is_refused(metadata, message, tmp_path):
    _, compact, index_map = pruned("vgg")
    with pytest.raises(MapError, match=message):
        save_pruned(Pruned(compact, index_map), tmp_path / "m.safetensors", metadata=metadata)
    assert not list(tmp_path.iterdir())


def test_states_that_can_not_be_saved_are_refused(tmp_path):
    full, compact, index_map = pruned("vgg")
    with pytest.raises(MapError, match="expected the compact shape"):
        save_pruned(Pruned(full, index_map), tmp_path / "m.safetensors")
    with pytest.raises(MapError, match="a torch.float32 tensor on meta of this name can't be saved"):
        save_pruned(Pruned(compact.to("meta"), index_map), tmp_path / "m.safetensors")
    reserved = {"hfp/kept/0": torch.zeros(1)}
    with pytest.raises(MapError, match="hfp/kept/0: a torch.float32 tensor on cpu of this name can't be saved"):
        save_pruned(Pruned(reserved, IndexMap.identity(reserved)), tmp_path / "m.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    full, compact, index_map = pruned("vgg")
    path = save_pruned(Pruned(compact, index_map), tmp_path / "m.safetensors")
    before = path.read_bytes()

    write = Path.write_bytes

    def broken(target, content):
        write(target, content[: len(content) // 2])
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_bytes", broken)
    with pytest.raises(OSError, match="no space left"):
        save_pruned(Pruned(compact, index_map), path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["m.safetensors"]


def test_a_file_in_a_folder_that_is_not_there_and_a_folder_are_refused_in_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, compact, index_map = pruned("vgg")
    (tmp_path / "taken").mkdir()
    for save in (partial(save_pruned, Pruned(compact, index_map)), partial(save_index_map, index_map)):
        with pytest.raises(MapError, match=r"^no/x/m.safetensors can't be written: there is no folder no/x; make it"):
            save("no/x/m.safetensors")
        with pytest.raises(MapError, match=r"^taken can't be written: it is a folder; give the name of a file$"):
            save("taken")
    assert [entry.name for entry in tmp_path.iterdir()] == ["taken"]


def timm_file(folder, document=None, attributes=None, **arguments):
    """A file of a small timm model of which half is removed, whose description may be changed afterwards."""
    model = timm.create_model("test_resnet", num_classes=3)
    groups = Coupling.trace(model, torch.zeros(2, 3, 32, 32), [model.get_classifier()])
    index_map = groups.index_map(groups.plan({name: range(0, size, 2) for name, size in groups.sizes.items()}))
    path = folder / "timm.safetensors"
    save_pruned(Pruned(compact_model(model, index_map), index_map), path, timm=TINY)
    if document is not None:
        described, tensors = header(path)
        document(described)
        save_file(
            {name: tensor for name, (_, tensor) in tensors.items()}, path, metadata={"hfp": json.dumps(described)}
        )
    return path


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("conv1.0", "stride", {"tuple": [1, 1]}),
        ("conv1.0", "padding", {"tuple": [5000, 5000]}),
        ("conv1.0", "groups", 3),
        ("conv1.0", "out_channels", 7),
        ("bn1", "eps", 1.0),
        ("bn1", "num_features", 7),
        ("bn1", "momentum", 0.0),
        ("fc", "in_features", 7),
        ("", "num_classes", 2),
        ("", "drop_rate", 0.9),
        ("maxpool", "stride", 1),
        ("maxpool", "ceil_mode", True),
    ],
)
def test_attributes_that_do_not_follow_from_the_shapes_are_refused(name, key, value, tmp_path):
    skeleton = timm.create_model("test_resnet", num_classes=3)
    assert hasattr(skeleton.get_submodule(name), key)

    def lie(document):
        document["attributes"].setdefault(name, {})[key] = value

    path = timm_file(tmp_path, lie)
    with pytest.raises(MapError, match="is no size|must follow|can't become"):
        load_pruned(path)
    if not (name == "" and key in ("num_classes", "drop_rate")):
        with pytest.raises(MapError, match="is no size|must follow|can't become"):
            load_pruned(path, skeleton)


def test_a_checksum_finds_what_was_changed_and_files_without_one_are_read(tmp_path):
    full, compact, index_map = pruned("vgg")
    path = save_pruned(Pruned(compact, index_map), tmp_path / "m.safetensors")
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[-1] ^= 1
    path.write_bytes(bytes(flipped))
    with pytest.raises(MapError, match="was changed after it was written: its content does not fit its checksum"):
        read_pruned(path)
    path.write_bytes(whole.replace(b"libraries", b"librarieS", 1))
    with pytest.raises(MapError, match="was changed after it was written"):
        read_pruned(path)
    with safe_open(GOLDEN, framework="pt") as file:
        assert set(file.metadata()) == {"hfp"}
    assert read_pruned(GOLDEN).index_map == golden_parts()[1]


def test_a_file_has_the_same_bytes_each_time_and_the_modes_of_the_umask(tmp_path):
    _, compact, index_map = pruned("vgg")
    before = os.umask(0o027)
    try:
        first = save_pruned(Pruned(compact, index_map), tmp_path / "a.safetensors")
    finally:
        os.umask(before)
    second = save_pruned(Pruned(compact, index_map), tmp_path / "b.safetensors")
    assert first.read_bytes() == second.read_bytes()
    assert stat.S_IMODE(first.stat().st_mode) == 0o640


@pytest.mark.parametrize("where", ["metadata", "attributes", "skeleton"])
def test_descriptions_nested_without_end_are_refused(where, tmp_path):
    deep = '{"x": ' * 200 + "1" + "}" * 200
    text = GOLDEN_TEXT.replace(f'"{where}":', f'"{where}":{deep},"{where}_":', 1)
    with pytest.raises(MapError, match="nested more than 50 deep"):
        read_pruned(changed(tmp_path, text=text))


def hostile(path, timm_name, arguments, whole=False):
    """A small file that names a large model; `whole` describes all its tensors, each cut to its first entry."""
    entries, tensors = {}, {}
    if whole:
        with torch.device("meta"):
            state = timm.create_model(timm_name, **arguments).state_dict()
        entries = {name: {"shape": list(t.shape), "kept": [0] * t.dim()} for name, t in state.items()}
        tensors = {name: torch.zeros([1] * t.dim(), dtype=t.dtype) for name, t in state.items()}
        tensors["hfp/kept/0"] = torch.zeros(1, dtype=torch.int64)
    document = {
        "format": 1,
        "skeleton": {"timm": timm_name, "arguments": arguments},
        "tensors": entries,
        **{name: {} for name in ("transient", "tied", "attributes", "metadata", "libraries")},
    }
    save_file(tensors, path, metadata={"hfp": json.dumps(document)})
    return path


def test_a_small_file_that_names_a_model_of_huge_images_is_refused_at_once(tmp_path):
    path = hostile(tmp_path / "m.safetensors", "maxvit_tiny_tf_224", {"img_size": 100_000})
    with pytest.raises(MapError, match="'img_size' of maxvit_tiny_tf_224 is 100000, which is too large for a file of"):
        load_pruned(path)


def test_no_full_model_is_made_for_a_file_that_holds_little_of_it(tmp_path, monkeypatch):
    path = hostile(tmp_path / "m.safetensors", "vit_large_patch16_224", {}, whole=True)
    devices = []
    create = TimmModel.create
    monkeypatch.setattr(TimmModel, "create", lambda self, device="cpu": devices.append(device) or create(self, device))
    assert sum(tensor.numel() for tensor in load_pruned(path).model.state_dict().values()) < 1000
    assert devices == ["meta"]


def test_a_full_model_with_computed_tensors_is_not_made_for_a_file_much_smaller(tmp_path):
    path = hostile(tmp_path / "m.safetensors", "swin_base_patch4_window7_224", {"num_classes": 100_000}, whole=True)
    with pytest.raises(MapError, match="and a file of .* bytes may ask for|is not the model that was pruned"):
        load_pruned(path)


def test_a_named_model_asks_no_network_and_reads_no_file(tmp_path, monkeypatch):
    path = timm_file(tmp_path)
    load_pruned(path)  # what timm and torch import for the first time

    def forbidden(*_, **__):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "socket", forbidden)
    opened = []
    real = io.open
    monkeypatch.setattr(
        builtins, "open", lambda file, *rest, **named: opened.append(file) or real(file, *rest, **named)
    )
    load_pruned(path)
    assert {str(file) for file in opened} <= {str(path)}


class Viewing(nn.Module):
    """Has a buffer that lies in the memory of a parameter."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 6)
        self.register_buffer("first", self.layer.weight.detach()[:2])


def test_tensors_that_lie_in_the_memory_of_others_are_saved(tmp_path):
    model = Viewing()
    path = save_pruned(Pruned(model, IndexMap.identity(model)), tmp_path / "viewing.safetensors")
    found = load_pruned(path, model).model.state_dict()
    assert all(torch.equal(found[name], value) for name, value in model.state_dict().items())
