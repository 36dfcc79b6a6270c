"""The path everything else depends on: trace, plan, map, restrict, embed, aggregate."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
import torch_pruning as tp

from hfp.reconstruct import Aggregator, ChannelGroups, compact_model, record

from .nets import NETS, images, net


@pytest.mark.parametrize("name", NETS)
def test_planned_map_equals_recorded_map(name):
    parent, x = net(name), images()
    full = parent.state_dict()
    groups = ChannelGroups.trace(parent, x, ignored_layers=["head"])
    plan = groups.plan({name: range(size // 2) for name, size in groups.sizes.items()})
    pruned = copy.deepcopy(parent)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = tp.DependencyGraph().build_dependency(pruned, x)
    with record(pruned, x) as recording:
        for root, size in groups.sizes.items():
            layer = pruned.get_submodule(root)
            cut = graph.get_pruner_of_module(layer).prune_out_channels
            graph.get_pruning_group(layer, cut, list(range(size // 2, size))).prune()
    index_map = groups.index_map(plan)
    assert index_map == recording.index_map
    compact = compact_model(parent, index_map)
    torch.testing.assert_close(compact(x), pruned(x), rtol=0, atol=0)
    sub = index_map.restrict(full)
    back = index_map.embed(sub, into=full)
    assert all(torch.equal(back[name], full[name]) for name in full)


@pytest.mark.parametrize("rule", ["fill", "holders"])
def test_lone_client_replaces_what_it_held(rule):
    parent = net("resnet")
    full = {name: tensor.clone() for name, tensor in parent.state_dict().items()}
    groups = ChannelGroups.trace(parent, images(), ignored_layers=["head"])
    index_map = groups.index_map(groups.plan({"stem.0": [1, 2, 5]}))
    sub = {name: tensor + 1 for name, tensor in index_map.restrict(full).items()}
    aggregator = Aggregator(full, rule)
    aggregator.add(sub, index_map, weight=3.0)
    expected = index_map.embed(sub, into=full)
    for name, tensor in aggregator.result().items():
        torch.testing.assert_close(tensor, expected[name])
