"""Coupled groups, plans, and the maps derived from them without surgery."""

from __future__ import annotations

import copy

import pytest
import torch
import torch_pruning as tp
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hfp.reconstruct import ChannelGroups, MapError, Plan, compact_model, record
from hfp.reconstruct._closure import Site, units
from hfp.reconstruct._effects import Outcome, learn, merge, try_out
from hfp.reconstruct._running import widened

from .nets import CONVOLUTIONAL, NETS, conv_bn, images, net
from .surgery import assert_describes, cut, graph, masked

TRACED = {}


def traced(name):
    """Models and groups by name; tracing is what takes time here."""
    if name not in TRACED:
        model = net(name)
        TRACED[name] = model, ChannelGroups.trace(model, images(), ignored_layers=["head"])
    return TRACED[name]


@st.composite
def plans(draw, groups):
    """Random plans that keep or remove units as wholes; some groups are left out."""
    kept = {}
    for name, labels in groups.units.items():
        chosen = draw(st.none() | st.sets(st.integers(0, int(labels.max())), min_size=1))
        if chosen is not None:
            kept[name] = torch.isin(labels, torch.tensor(sorted(chosen))).nonzero().view(-1)
    return groups.plan(kept)


@pytest.mark.parametrize("name", NETS)
@settings(max_examples=15)
@given(data=st.data())
def test_a_plan_gives_the_map_of_the_surgery_it_stands_for(name, data):
    full, groups = traced(name)
    plan = data.draw(plans(groups))
    index_map = groups.index_map(plan)
    pruned = copy.deepcopy(full)
    with record(pruned, images()) as recording:
        cut(pruned, plan.kept)
    assert index_map == recording.index_map
    assert_describes(index_map, full, pruned)
    assert torch.equal(compact_model(full, index_map)(images()), pruned(images()))


@pytest.mark.parametrize("name", CONVOLUTIONAL)
@settings(max_examples=15)
@given(data=st.data())
def test_the_compact_model_equals_the_masked_full_one(name, data):
    """Coupled channels are aligned: whatever is removed, no kept path sees it."""
    full, groups = traced(name)
    index_map = groups.index_map(data.draw(plans(groups)))
    compact = compact_model(full, index_map)
    torch.testing.assert_close(compact(images(4)), masked(full, index_map)(images(4)), rtol=1e-5, atol=1e-6)


def test_the_comparison_with_the_masked_model_sees_a_misaligned_channel():
    full, groups = traced("resnet")
    index_map = groups.index_map(groups.plan({"stem.0": [0, 1, 2, 3]}))
    other = groups.index_map(groups.plan({"stem.0": [0, 1, 2, 4]}))
    compact = compact_model(full, index_map)
    with pytest.raises(AssertionError, match="not close"):
        torch.testing.assert_close(compact(images(4)), masked(full, other)(images(4)), rtol=1e-5, atol=1e-6)


def test_names_sizes_and_units():
    _, groups = traced("grouped")
    assert dict(groups.sizes) == {"normed.0": 8, "grouped.0": 12, "stem.0": 8}
    assert groups.names == tuple(groups.sizes)
    assert groups.units["normed.0"].tolist() == [0, 1, 2, 3] * 2
    assert groups.units["grouped.0"].tolist() == [0, 1, 2] * 4
    assert groups.units["stem.0"].tolist() == [0, 1] * 4
    _, groups = traced("resnet")
    assert all(groups.units[name].tolist() == list(range(size)) for name, size in groups.sizes.items())


def test_units_kept_in_part_are_refused():
    _, groups = traced("grouped")
    with pytest.raises(MapError, match=r"stem.0: channels \[1, 3, 5, 7\] must be kept or removed together"):
        groups.plan({"stem.0": [0, 2, 4, 6, 7]})
    with pytest.raises(MapError, match=r"stem.0: channels \[1, 3, 5, 7\] must be kept or removed together"):
        groups.index_map(Plan(groups.sizes, {"stem.0": (0, 2, 4, 6, 7)}))


def test_groups_that_can_not_be_pruned_are_left_whole_with_the_reason():
    _, groups = traced("vit")
    assert groups.names == ("mlp.2", "mlp.0")
    assert list(groups.skipped) == ["attention.qkv"]
    assert "RuntimeError: shape" in groups.skipped["attention.qkv"]
    assert "attention.qkv" not in groups.units
    with pytest.raises(MapError, match="no coupled group is called 'attention.qkv'"):
        groups.plan({"attention.qkv": range(12)})


class Unfolded(nn.Module):
    """A vector read as channels of an image: four of its entries make a channel."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.point = nn.Linear(192, 24), conv_bn(6, 8, kernel=1)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.enter(x.flatten(1)).relu()
        return self.head(self.point(x.view(x.shape[0], -1, 2, 2)).mean((2, 3)))


def test_entries_that_make_one_channel_form_a_unit():
    full = Unfolded().eval()
    groups = ChannelGroups.trace(full, images(), ["head"])
    assert groups.units["enter"].tolist() == [place // 4 for place in range(24)]
    kept = [place for place in range(24) if place // 4 in (1, 4)]
    index_map = groups.index_map(groups.plan({"enter": kept}))
    assert index_map.tensors["point.0.weight"].kept[1].tolist() == [1, 4]
    torch.testing.assert_close(compact_model(full, index_map)(images()), masked(full, index_map)(images()))


class Swapped(nn.Module):
    """A sum of channels with others of the same layer; torch-pruning walks round it for ever."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.point, self.last = conv_bn(3, 8), conv_bn(8, 8, kernel=1), conv_bn(8, 6, kernel=1)
        self.head = nn.Linear(6, 5)

    def forward(self, x):
        x = self.stem(x)
        swapped = torch.cat(x.split(4, 1)[::-1], 1)
        return self.head(self.last(self.point(x + swapped)).mean((2, 3)))


def test_groups_whose_indices_torch_pruning_gets_wrong_are_left_whole():
    groups = ChannelGroups.trace(Swapped().eval(), images(), ["head"])
    assert groups.names == ("last.0", "point.0")
    assert "do not fit its channels" in groups.skipped["stem.0"]


class TiedPair(nn.Module):
    """Two layers with one weight, whose outputs are pruned in different groups."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.between, self.second = nn.Linear(192, 6), nn.Linear(6, 192), nn.Linear(192, 6)
        self.second.weight = self.first.weight
        self.head = nn.Linear(6, 5)

    def forward(self, x):
        return self.head(self.second(self.between(self.first(x.flatten(1)).relu())).relu())


def test_plans_that_part_tied_weights_are_refused():
    groups = ChannelGroups.trace(TiedPair().eval(), images(), ["head", "between"])
    assert set(groups.names) == {"first", "second"}
    index_map = groups.index_map(groups.plan({"first": [0, 2], "second": [0, 2]}))
    assert index_map.tensors["first.weight"] == index_map.tensors["second.weight"]
    with pytest.raises(MapError, match="first.weight and second.weight share one tensor but keep different indices"):
        groups.index_map(groups.plan({"first": [0, 2], "second": [0, 3]}))


class InPairs(nn.Module):
    """A layer that loses an even channel only together with the odd one behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.channels = 8
        self.gain = nn.Parameter(torch.rand(8))


class InPairsPruner(tp.pruner.BasePruningFunc):
    def prune_out_channels(self, layer, idxs):
        gone = {*idxs, *(i + 1 for i in idxs if i % 2 == 0)}
        keep = [i for i in range(layer.channels) if i not in gone]
        layer.gain, layer.channels = nn.Parameter(layer.gain.data[keep]), len(keep)
        return layer

    prune_in_channels = prune_out_channels

    def get_out_channels(self, layer):
        return layer.channels

    get_in_channels = get_out_channels


def test_functions_are_learned_only_where_every_trial_agrees():
    def site(layer, handler):
        return Site(tp.dependency.Node(layer, None, "layer"), handler)

    odd = site(InPairs(), InPairsPruner().prune_out_channels)
    assert learn(odd, 8, "layer") is None
    gone = torch.arange(8) == 2
    assert try_out(odd, gone, "layer").kept["gain", 0].tolist() == [0, 1, 4, 5, 6, 7]
    usual = site(nn.Conv2d(8, 4, 3), tp.prune_conv_in_channels)
    formula = learn(usual, 8, "layer")
    assert formula.places == (("weight", 1),)
    assert formula.outcome(gone).attributes == {("", "in_channels"): 7} == try_out(usual, gone, "layer").attributes


def test_the_effects_of_several_functions_must_not_collide():
    place = ("weight", 0)
    one = Outcome({place: torch.tensor([0, 1])}, {("", "groups"): 2})
    assert merge({"a": one, "b": one}, "layer").attributes == one.attributes
    with pytest.raises(MapError, match="layer: a and b both cut dimension 0 of 'weight'"):
        merge({"a": one, "b": Outcome({place: torch.tensor([0, 2])}, {})}, "layer")
    with pytest.raises(MapError, match="layer: a and b both change 'groups'"):
        merge({"a": one, "b": Outcome({}, {("", "groups"): 1})}, "layer")


def test_batches_of_one_are_doubled():
    class Watching(Unfolded):
        def forward(self, x):
            batches.add(x.shape[0])
            return super().forward(x)

    batches: set[int] = set()
    ChannelGroups.trace(Watching().eval(), (images(1),), ["head"])
    assert batches == {2}
    assert widened({"x": images(1)})["x"].shape == (2, 3, 8, 8)
    assert widened([torch.zeros(1), "a", images(3)])[2].shape == (3, 3, 8, 8)


def test_units_by_shared_index_and_by_block():
    class Place:
        def __init__(self, channels, blocks):
            self.channels, self.blocks = channels, blocks

    shared = {Place(2, 1): torch.tensor([[0, 0], [0, 3], [1, 1]])}
    assert units(shared, 4).tolist() == [0, 1, 2, 0]
    blocks = {Place(4, 2): torch.tensor([[0, 0], [1, 1], [2, 2], [3, 3]])}
    assert units(blocks, 4).tolist() == [0, 1, 0, 1]
    assert units({**shared, **blocks}, 4).tolist() == [0, 0, 0, 0]


def test_a_frozen_model_and_a_batch_of_one_are_traced_all_the_same():
    model = net("vgg").requires_grad_(False)
    groups = ChannelGroups.trace(model, images(1), ["head"])
    assert dict(groups.sizes) == dict(traced("vgg")[1].sizes)
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("name", ["resnet", "grouped", "vit"])
def test_maps_need_no_weights(name):
    _, groups = traced(name)
    weightless = ChannelGroups.trace(net(name).to("meta"), images().to("meta"), ["head"])
    plan = groups.plan({root: (labels == 0).nonzero().view(-1) for root, labels in groups.units.items()})
    assert weightless.index_map(plan) == groups.index_map(plan)


def test_tracing_changes_nothing_of_the_callers():
    model = net("resnet").train()
    model.stem[1].weight.requires_grad_(False)
    before = copy.deepcopy(model)
    ChannelGroups.trace(model, images(), [model.head])
    assert model.training
    assert [p.requires_grad for p in model.parameters()] == [p.requires_grad for p in before.parameters()]
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), before.state_dict().values(), strict=True)
    )


def test_groups_are_what_criteria_take():
    model, groups = traced("resnet")
    scores = tp.importance.MagnitudeImportance()(groups.group("stem.0"))
    expected = tp.importance.MagnitudeImportance()(
        next(g for g in graph(model).get_all_groups() if g[0].dep.target.module is model.stem[0])
    )
    torch.testing.assert_close(scores, expected)
    with pytest.raises(MapError, match="no coupled group is called 'stem'; there are blocks.1.skip.0,"):
        groups.group("stem")


def test_load_puts_weights_where_criteria_look():
    model = net("resnet")
    groups = ChannelGroups.trace(model, images(), ["head"])
    state = {name: torch.zeros_like(tensor) for name, tensor in model.state_dict().items()}
    groups.load(state)
    assert not tp.importance.MagnitudeImportance(normalizer=None)(groups.group("stem.0")).any()
    assert model.stem[0].weight.any()
    with pytest.raises(MapError, match="missing stem.0.weight"):
        groups.load({name: tensor for name, tensor in state.items() if name != "stem.0.weight"})


def test_ignored_layers_by_module_or_name():
    model = net("vgg")
    by_module = ChannelGroups.trace(model, images(), [model.head, model.features[0]])
    by_name = ChannelGroups.trace(model, images(), ["head", "features.0"])
    assert by_module.names == by_name.names == ("hidden", "features.2.0")
    with pytest.raises(MapError, match="ignored layer 'fc' is not in the model"):
        ChannelGroups.trace(model, images(), ["fc"])
    with pytest.raises(MapError, match="ignored layer Linear.* is not in the model"):
        ChannelGroups.trace(model, images(), [nn.Linear(1, 1)])


def test_a_model_with_nothing_to_prune_is_refused():
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 5))
    with pytest.raises(MapError, match="no layer of this model can be pruned"):
        ChannelGroups.trace(model, images(), ["1"])


def test_inputs_that_the_model_does_not_take_are_refused():
    with pytest.raises(MapError, match="does not run on the example inputs"):
        ChannelGroups.trace(net("vgg"), torch.zeros(2, 1, 8, 8), ["head"])


def test_plans_of_other_groups_are_refused():
    _, groups = traced("vgg")
    with pytest.raises(MapError, match="made for other coupled groups"):
        groups.index_map(Plan({"stem": 4}, {}))


class Joint(nn.Module):
    """Each of two branches can lose all of its channels in the sum's consumer; both together can't."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = conv_bn(3, 2), conv_bn(3, 2)
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        return self.head(torch.cat([self.first(x), self.second(x)], 1).mean((2, 3)))


def test_plans_are_in_the_numbering_of_the_full_model():
    groups = ChannelGroups.trace(Joint().eval(), images(), ["head"])
    index_map = groups.index_map(groups.plan({"first.0": [1], "second.0": [0]}))
    assert index_map.tensors["head.weight"].kept[1].tolist() == [1, 2]


@given(st.dictionaries(st.sampled_from(["a", "b"]), st.sets(st.integers(0, 3), min_size=1)))
def test_a_plan_counts_what_it_removes(kept):
    plan = Plan({"a": 4, "b": 4}, {name: tuple(sorted(channels)) for name, channels in kept.items()})
    assert {name: set(channels) for name, channels in plan.kept.items()} == {
        "a": set(range(4)),
        "b": set(range(4)),
        **kept,
    }
    assert plan.ratio == pytest.approx(1 - sum(len(kept.get(name, range(4))) for name in "ab") / 8)


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        ({"c": (0,)}, "no coupled group is called 'c'"),
        ({"a": ()}, "a: no channel is kept; keep at least one of 4"),
        ({"a": (0, 4)}, r"a: expected ascending channels without repeats in \[0, 4\)"),
        ({"a": (-1, 0)}, r"a: expected ascending"),
        ({"a": (1, 0)}, r"a: expected ascending"),
        ({"a": (1, 1)}, r"a: expected ascending"),
    ],
)
def test_wrong_plans_are_refused(kept, message):
    with pytest.raises(MapError, match=message):
        Plan({"a": 4, "b": 2}, kept)


def test_plans_can_not_be_changed():
    plan = Plan({"a": 4}, {"a": (0,)})
    with pytest.raises(TypeError, match="does not support item assignment"):
        plan.kept["a"] = (1,)
