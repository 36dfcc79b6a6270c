"""Recording of surgery that the user drives with torch-pruning."""

from __future__ import annotations

import copy
import threading

import pytest
import torch
import torch_pruning as tp
from cutting import assert_describes, cut, graph, masked, pruner
from networks.small import NETS, Attention, Scaled, conv_bn, images, net
from torch import nn
from torch_pruning.dependency.dependency import Dependency

from hfp.reconstruct import IndexMap, MapError, compact_model, record


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("global_pruning", [False, True])
def test_one_step_of_a_pruner(name, global_pruning):
    torch.manual_seed(0)
    model = net(name)
    full = copy.deepcopy(model)
    ignored = [model.head, model.attention] if name == "vit" else [model.head]
    with record(model, images()) as recording:
        pruner(model, ignored_layers=ignored, global_pruning=global_pruning, max_pruning_ratio=0.8).step()
    assert_describes(recording.index_map, full, model)
    assert recording.index_map.kept_entries < recording.index_map.full_entries
    compact = compact_model(full, recording.index_map)
    assert torch.equal(compact(images()), model(images()))


@pytest.mark.parametrize("name", ["vgg", "resnet", "depthwise", "dense"])
def test_several_steps_with_training_between_them(name):
    torch.manual_seed(0)
    model = net(name)
    full = copy.deepcopy(model)
    steps = pruner(model, iterative_steps=3, pruning_ratio=0.7)
    with record(model, images()) as recording:
        for _ in range(3):
            steps.step()
            train(model)
    index_map = recording.index_map
    ones = {key: torch.arange(tensor.numel()).view(tensor.shape) for key, tensor in full.state_dict().items()}
    assert {n: t.shape for n, t in index_map.restrict(ones).items()} == {
        n: t.shape for n, t in model.state_dict().items()
    }
    head = model.head.weight.shape[1]
    assert head < full.head.weight.shape[1] * 0.5


def train(model):
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(images(4)).square().mean().backward()
    optimizer.step()
    model.eval()


@pytest.mark.parametrize("name", ["vgg", "resnet", "dense", "grouped"])
def test_steps_compose_like_recordings(name):
    """One recording over two steps equals the composition of two recordings over one step each."""
    torch.manual_seed(0)
    model = net(name)
    full = copy.deepcopy(model)
    steps = pruner(model, iterative_steps=2, pruning_ratio=0.75)
    with record(model) as both:
        with record(model) as first:
            steps.step()
        with record(model) as second:
            steps.step()
    assert first.index_map.then(second.index_map) == both.index_map
    assert_describes(both.index_map, full, model)


def test_interactive_steps_and_groups_pruned_with_own_indices():
    """`Group.prune(idxs)` writes torch-pruning's history twice; the recording counts every cut once."""
    model = net("resnet")
    full = copy.deepcopy(model)
    steps = pruner(model)
    with record(model, images()) as recording:
        for group in steps.step(interactive=True):
            group.prune([0, 3])
    assert len(steps.DG.pruning_history()) == 2 * len(recording_roots(full))
    assert_describes(recording.index_map, full, model)
    stem = recording.index_map.tensors["stem.0.weight"].kept[0]
    assert stem.tolist() == [1, 2, 4, 5, 6, 7]


def recording_roots(model):
    return list(graph(model).get_all_groups(ignored_layers=[model.head]))


def test_nothing_pruned_is_the_identity():
    model = net("vit")
    with record(model, images()) as recording:
        graph(model)
    assert recording.index_map == IndexMap.identity(model)


def test_recording_without_weights():
    model = net("resnet").to("meta")
    twin = net("resnet")
    with record(model, images().to("meta")) as planned:
        tracer = graph(model, images().to("meta"))
        tracer.get_pruning_group(model.stem[0], tp.prune_conv_out_channels, [1, 4]).prune()
    with record(twin, images()) as recording:
        graph(twin).get_pruning_group(twin.stem[0], tp.prune_conv_out_channels, [1, 4]).prune()
    assert planned.index_map == recording.index_map


def test_whole_heads_with_attributes_set_by_hand():
    torch.manual_seed(0)
    model = net("vit")
    full = copy.deepcopy(model)
    steps = pruner(
        model,
        num_heads={model.attention.qkv: 3},
        prune_num_heads=True,
        prune_head_dims=False,
        head_pruning_ratio=0.34,
        ignored_layers=[model.head, model.mlp[2]],
    )
    with record(model, images()) as recording:
        steps.step()
        model.attention.num_heads = steps.num_heads[model.attention.qkv]
    index_map = recording.index_map
    assert_describes(index_map, full, model)
    assert dict(index_map.attributes["attention"]) == {"num_heads": model.attention.num_heads}
    assert model.attention.num_heads < 3
    compact = compact_model(full, index_map)
    assert torch.equal(compact(images()), model(images()))
    torch.testing.assert_close(masked(full, index_map)(images()), model(images()))


def test_attributes_left_stale_are_found():
    model = net("vit")
    with (
        pytest.raises(
            MapError, match=r"does not run on the example inputs \(RuntimeError.*num_heads, inside the block"
        ),
        record(model, images()),
    ):
        cut(model, {"attention.qkv": [c for c in range(36) if c % 12]})


class Pairwise(nn.Module):
    """A custom layer: two vectors over the channels, one of them longer by a channel that always stays."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.gain = nn.Parameter(torch.rand(channels))
        self.tail = nn.Parameter(torch.rand(1, channels + 1))
        self.register_buffer("seen", torch.zeros(channels, dtype=torch.int64))
        self.register_buffer("window", torch.ones(channels), persistent=False)

    def forward(self, x):
        gain = self.gain * self.tail[0, 1:] * self.window
        return x * gain[:, None, None]


class PairwisePruner(tp.pruner.BasePruningFunc):
    def prune_out_channels(self, layer, idxs):
        keep = [i for i in range(layer.channels) if i not in idxs]
        layer.gain = nn.Parameter(layer.gain.data[keep])
        layer.tail = nn.Parameter(torch.cat([layer.tail.data[:, :1], layer.tail.data[:, 1:][:, keep]], 1))
        layer.seen = layer.seen[keep]
        layer.window = layer.window[keep]
        layer.channels = len(keep)
        return layer

    prune_in_channels = prune_out_channels

    def get_out_channels(self, layer):
        return layer.channels

    get_in_channels = get_out_channels


class Custom(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.pair, self.point = conv_bn(3, 8), Pairwise(8), conv_bn(8, 8, kernel=1)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        return self.head(self.point(self.pair(self.stem(x))).mean((2, 3)))


@pytest.mark.parametrize("shape", [(768,), (4, 192)])
def test_layer_norms_are_cut_in_order(shape):
    """torch-pruning takes 76 of 192 kept channels in the order of a set."""
    layer = nn.LayerNorm(shape)
    layer.weight.data = torch.arange(layer.weight.numel()).view(shape).float()
    full = copy.deepcopy(layer)
    gone = [i for i in range(shape[-1]) if i % 3]
    node = tp.dependency.Node(layer, None, "norm")
    with record(layer) as recording:
        Dependency(None, tp.prune_layernorm_out_channels, node, node)(gone)
    assert torch.equal(layer.weight, full.weight[..., ::3])
    assert layer.normalized_shape == (*shape[:-1], len(range(0, shape[-1], 3)))
    assert_describes(recording.index_map, full, layer)
    with pytest.raises(AssertionError, match="Mismatch"):
        stock = tp.prune_layernorm_out_channels(copy.deepcopy(full), gone)
        torch.testing.assert_close(stock.weight, layer.weight, msg=lambda text: f"Mismatch {text}")


def test_custom_layers_and_buffers_outside_the_state():
    model = Custom().eval()
    full = copy.deepcopy(model)
    steps = pruner(model, customized_pruners={Pairwise: PairwisePruner()}, root_module_types=[nn.Conv2d])
    with record(model, images()) as recording:
        for group in steps.step(interactive=True):
            group.prune([2, 5])
    index_map = recording.index_map
    assert_describes(index_map, full, model)
    assert index_map.tensors["pair.tail"].kept[1].tolist() == [0, 1, 2, 4, 5, 7, 8]
    assert index_map.tensors["pair.seen"].compact_shape == (6,)
    assert index_map.transient["pair.window"].kept[0].tolist() == [0, 1, 3, 4, 6, 7]
    assert "pair.window" not in index_map.tensors
    assert torch.equal(compact_model(full, index_map)(images()), model(images()))


def test_unwrapped_parameters_by_name_and_dimension():
    model = net("vit")
    full = copy.deepcopy(model)
    with record(model, images()) as recording:
        cut(model, {"mlp.2": range(0, 12, 2)})
    for name in ("token", "position"):
        assert recording.index_map.tensors[name].kept[2].tolist() == list(range(0, 12, 2))
        assert recording.index_map.tensors[name].kept[:2] == (None, None)
    assert_describes(recording.index_map, full, model)


def test_integer_statistics_are_kept_whole():
    model = net("vgg")
    with record(model) as recording:
        cut(model, {"features.0.0": range(4)})
    assert recording.index_map.tensors["features.0.1.num_batches_tracked"].is_identity
    assert recording.index_map.tensors["features.0.1.running_var"].compact_shape == (4,)


class SharedLayer(nn.Module):
    """The same block twice, once under each of two names."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first = conv_bn(3, 8), conv_bn(8, 8)
        self.second = self.first
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        return self.head(self.second(self.first(self.stem(x))).mean((2, 3)))


def test_a_layer_under_two_names_is_mapped_under_both():
    model = SharedLayer().eval()
    full = copy.deepcopy(model)
    with record(model, images()) as recording:
        cut(model, {"stem.0": range(6)})
    assert_describes(recording.index_map, full, model)
    tensors = recording.index_map.tensors
    assert tensors["first.0.weight"] == tensors["second.0.weight"]
    assert tensors["first.0.weight"].compact_shape == (6, 6, 3, 3)
    compact = compact_model(full, recording.index_map)
    assert compact.first is compact.second


class Tied(nn.Module):
    """Two layers that share one weight."""

    def __init__(self, inner: int) -> None:
        super().__init__()
        self.enter = nn.Linear(6, 6, bias=False)
        self.middle = nn.Linear(6, inner)
        self.back = nn.Linear(inner, 6)
        self.leave = nn.Linear(6, 6, bias=False)
        self.leave.weight = self.enter.weight
        self.head = nn.Linear(6, 2)

    def forward(self, x):
        return self.head(self.leave(self.back(self.middle(self.enter(x)).relu())))


def test_tied_weights_that_part_are_refused():
    model = Tied(4).eval()
    with (
        pytest.raises(MapError, match="enter.weight and leave.weight share one tensor but keep different"),
        record(model),
    ):
        tracer = graph(model, torch.zeros(2, 6))
        tracer.get_pruning_group(model.enter, tp.prune_linear_out_channels, [1]).prune()


def test_tied_weights_that_are_left_alone_stay_tied():
    model = Tied(4).eval()
    full = copy.deepcopy(model)
    with record(model, torch.zeros(2, 6)) as recording:
        tracer = graph(model, torch.zeros(2, 6))
        tracer.get_pruning_group(model.middle, tp.prune_linear_out_channels, [1]).prune()
    compact = compact_model(full, recording.index_map)
    assert compact.enter.weight is compact.leave.weight


def test_surgery_around_the_graph_is_found():
    model = net("vgg")
    with (
        pytest.raises(MapError, match=r"features.0.0.weight: the recorded surgery leaves shape \[8, 3, 3, 3\]"),
        record(model),
    ):
        tp.prune_conv_out_channels(model.features[0][0], [1, 2])


def test_surgery_around_the_graph_is_found_before_the_next_cut():
    """Otherwise the next cut's indices would be read in the wrong numbering, with shapes that fit."""
    model = net("vgg")
    with pytest.raises(MapError, match="features.0.0.weight: the recorded surgery leaves shape"), record(model):
        tracer = graph(model)
        tp.prune_conv_out_channels(model.features[0][0], [1, 2])
        cut_before = model.features[0][0].weight.shape
        try:
            tracer.get_pruning_group(model.features[0][0], tp.prune_conv_out_channels, [0]).prune()
        finally:
            assert model.features[0][0].weight.shape == cut_before


@pytest.mark.parametrize(
    ("indices", "found"),
    [(torch.tensor([0, 1]), r"tensor\(0\)"), ([0, 0], "repeated ones"), ([-1], "-1"), ([8], "8"), ([0.5], "0.5")],
)
def test_indices_that_torch_pruning_miscounts_are_refused_before_the_cut(indices, found):
    model = net("vgg")
    before = copy.deepcopy(model.state_dict())
    layer = model.features[0][0]
    with (
        pytest.raises(MapError, match=rf"features.0.0: expected distinct integers in \[0, 8\) to remove, got {found}"),
        record(model),
    ):
        graph(model).get_pruning_group(layer, tp.prune_conv_out_channels, indices).prune()
    assert layer.out_channels == 8
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_replaced_modules_are_refused():
    model = net("vgg")
    with pytest.raises(MapError, match="modules were added, removed or replaced"), record(model):
        model.head = nn.Linear(10, 5)


def test_lost_tensors_are_refused():
    model = net("vgg")
    with pytest.raises(MapError, match="head.bias disappeared"), record(model):
        model.head.bias = None


class Fancy(nn.Module):
    """Attributes of many types, some of which a compact model can be given."""

    def __init__(self) -> None:
        super().__init__()
        self.width, self.rate, self.mode, self.shape, self.sizes = 8, 1, "a", (8, 2), [8, [1]]
        self.flag, self.nothing, self.config = True, None, {"width": 8}
        self.point = nn.Conv2d(3, 8, 1)


def test_changed_attributes_are_recorded_with_their_types():
    model = Fancy()
    with record(model) as recording:
        model.width, model.rate, model.mode, model.shape = 6, 0.5, "b", torch.Size([6, 2])
        model.sizes[0] = 6
        model.sizes[1][0] = 2
        model.flag, model.nothing, model.extra = False, 3, 1
        model.config["width"] = 6
        model.train()
    changed = dict(recording.index_map.attributes[""])
    assert changed == {
        "width": 6, "rate": 0.5, "mode": "b", "shape": (6, 2), "sizes": [6, [2]], "flag": False, "nothing": 3,
    }  # fmt: skip
    assert type(changed["shape"]) is tuple


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda model: delattr(model, "width"), "model.width changed from 8 to nothing"),
        (lambda model: setattr(model, "width", "8"), "model.width changed from 8 to '8'"),
        (lambda model: setattr(model, "flag", 1), "model.flag changed from True to 1"),
        (lambda model: setattr(model, "mode", None), "model.mode changed from 'a' to None"),
        (lambda model: setattr(model, "width", torch.ones(1)), "model.width changed from 8 to tensor"),
        (lambda model: setattr(model, "width", len), "model.width changed from 8 to <built-in"),
    ],
)
def test_attributes_that_a_compact_model_can_not_be_given_are_refused(change, message):
    model = Fancy()
    with pytest.raises(MapError, match=message), record(model):
        change(model)


def test_no_map_before_the_end_or_after_an_error():
    model = net("vgg")
    with record(model) as recording, pytest.raises(MapError, match="before its `with` block has ended"):
        recording.index_map  # noqa: B018
    assert recording.index_map == IndexMap.identity(model)
    with pytest.raises(KeyError, match="mine"), record(model) as broken:
        raise KeyError("mine")
    with pytest.raises(MapError, match="before its `with` block has ended"):
        broken.index_map  # noqa: B018


def test_recordings_leave_torch_pruning_as_it_was():
    before = Dependency.__call__
    model, other = net("vgg"), net("resnet")
    with record(model):
        assert Dependency.__call__ is not before
        with record(other):
            pass
        assert Dependency.__call__ is not before
    assert Dependency.__call__ is before


def test_recordings_mind_their_own_model():
    model, other = net("vgg"), net("vgg")
    full = copy.deepcopy(model)
    with record(model) as recording, record(other) as untouched:
        cut(model, {"features.0.0": range(4)})
    assert_describes(recording.index_map, full, model)
    assert untouched.index_map == IndexMap.identity(other)


def test_recordings_in_several_threads():
    maps = {}

    def work(number):
        model = net("resnet")
        with record(model) as recording:
            cut(model, {"stem.0": range(number + 1)})
        maps[number] = recording.index_map

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {n: m.tensors["stem.0.weight"].compact_shape[0] for n, m in maps.items()} == {0: 1, 1: 2, 2: 3, 3: 4}


def test_hooks_of_the_model_are_not_copied():
    """Custom pruners see a copy of the layer; what hooks refer to is nobody's business."""
    model = net("vgg")

    class Uncopiable:
        def hook(self, *_):
            return None

        def __deepcopy__(self, memo):
            raise AssertionError("copied")

    model.features[0][0].register_forward_hook(Uncopiable().hook)
    with record(model) as recording:
        cut(model, {"features.0.0": range(4)})
    assert recording.index_map.tensors["features.0.0.weight"].compact_shape[0] == 4


def test_modes_stay_as_they_were():
    model = net("vgg").train()
    model.features[0].eval()
    with record(model, images()):
        pass
    assert model.training
    assert not model.features[0].training


def test_example_inputs_may_be_a_tuple_or_keywords():
    for example in ((images(),), {"x": images()}):
        model = Scaled().eval()
        with record(model, example) as recording:
            cut(model, {"branch.0": range(8)})
        assert recording.index_map.tensors["branch.0.weight"].compact_shape[0] == 8


def test_attention_is_what_it_says():
    layer = Attention(12, 3).eval()
    x = torch.randn(2, 5, 12)
    reference = nn.MultiheadAttention(12, 3, batch_first=True).eval()
    reference.load_state_dict({
        "in_proj_weight": layer.qkv.weight, "in_proj_bias": layer.qkv.bias,
        "out_proj.weight": layer.proj.weight, "out_proj.bias": layer.proj.bias,
    })  # fmt: skip
    torch.testing.assert_close(layer(x), reference(x, x, x)[0])


class Noisy(nn.Module):
    """Draws at random in evaluation mode too, and has a setting that is no number."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.padding_value = nn.Linear(4, 6), nn.Linear(6, 3), float("nan")

    def forward(self, x):
        return self.second(nn.functional.dropout(self.first(x), 0.5, training=True))


def test_running_the_pruned_model_draws_nothing_of_the_callers_and_finds_no_change_that_is_none():
    model, x = Noisy(), torch.randn(2, 4)
    groups = tp.DependencyGraph().build_dependency(model, x)
    before = torch.get_rng_state()
    with record(model, x) as recording:
        groups.get_pruning_group(model.first, tp.prune_linear_out_channels, [1, 2]).prune()
    assert torch.equal(torch.get_rng_state(), before)
    assert recording.index_map.attributes == {"first": {"out_features": 4}, "second": {"in_features": 4}}
