"""Real torch-pruning surgery, and what its results are compared with."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Mapping

import torch
import torch_pruning as tp
from networks.small import images
from torch import Tensor, nn

from hfp.reconstruct import IndexMap


def pruner(model: nn.Module, example: Tensor | None = None, **options: object) -> tp.pruner.BasePruner:
    """A pruner with its own option dicts (torch-pruning's defaults are shared between pruners) and random scores."""
    settings: dict[str, object] = {
        "importance": tp.importance.RandomImportance(),
        "pruning_ratio": 0.5,
        "ignored_layers": [model.head],
        "in_channel_groups": {},
        "out_channel_groups": {},
        "num_heads": {},
    }
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Unwrapped parameters detected")
        return tp.pruner.BasePruner(model, images() if example is None else example, **{**settings, **options})


def graph(model: nn.Module, example: Tensor | None = None) -> tp.DependencyGraph:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Unwrapped parameters detected")
        return tp.DependencyGraph().build_dependency(model, images() if example is None else example)


def cut(model: nn.Module, kept: Mapping[str, Iterable[int]]) -> None:
    """Prune groups, given by root layer, by the channels that stay, in one numbering: that of the model as it is."""
    tracer = graph(model)
    for root, channels in kept.items():
        layer = model.get_submodule(root)
        prune = tracer.get_pruner_of_module(layer).prune_out_channels
        gone = sorted(set(range(tracer.get_out_channels(layer))) - set(map(int, channels)))
        if gone:
            tracer.get_pruning_group(layer, prune, gone).prune()


def masked(full: nn.Module, index_map: IndexMap) -> nn.Module:
    """The full model with zeros for every parameter entry that is not kept."""
    model = copy.deepcopy(full)
    masks = index_map.masks()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.mul_(masks[name])
    return model


def assert_describes(index_map: IndexMap, full: nn.Module, pruned: nn.Module) -> None:
    """The map takes the full model's state to the pruned model's, bit for bit, and only its own attributes differ."""
    state = pruned.state_dict()
    sub = index_map.restrict(full.state_dict())
    assert list(sub) == list(state)
    for name, tensor in state.items():
        torch.testing.assert_close(sub[name], tensor, rtol=0, atol=0, msg=lambda text, name=name: f"{name}: {text}")
