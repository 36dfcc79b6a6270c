"""The structures that isomorphic pruning ranks together, and what comes of it in a whole model."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch_pruning as tp
from timm.layers import GroupNormAct, LayerNormAct2d
from torch import nn

import hfp
from hfp.pruning.scoring import structure
from hfp.reconstruct import Coupling

VIT = ("deit_tiny_patch16_224", {"img_size": 32, "depth": 2})


def theirs(model: nn.Module, inputs: torch.Tensor) -> dict[str, tuple[object, ...]]:
    """Give what torch-pruning tells structures apart by, by the name of each group's first layer."""
    graph = tp.DependencyGraph().build_dependency(model, inputs)
    return {
        graph._module2name[group[0][0].source.module]: tuple(
            (type(node.module), graph.is_out_channel_pruning_fn(dependency.handler))
            for dependency, _ in group
            for node in (dependency.source, dependency.target)
        )
        for group in graph.get_all_groups(root_module_types=[nn.Conv2d, nn.Linear])
    }


@pytest.mark.filterwarnings("ignore:Unwrapped parameters")
@pytest.mark.parametrize(
    ("name", "options"), [("resnet20", {}), VIT, ("convnext_atto", {"depths": (1, 1, 2, 1), "dims": (8, 16, 24, 32)})]
)
def test_structures_are_those_that_torch_pruning_ranks_together(name, options):
    model, inputs = hfp.create_model(name, **options).eval(), torch.randn(1, 3, 32, 32)
    coupling = Coupling.trace(model, inputs)
    ours = {group: structure(coupling, model, group) for group in coupling.names}
    expected = theirs(model, inputs)
    both = sorted(ours.keys() & expected.keys())
    assert len({ours[group] for group in both}) > 1
    for one, other in itertools.combinations(both, 2):
        assert (ours[one] == ours[other]) == (expected[one] == expected[other]), (one, other)


def test_a_layer_that_a_model_holds_under_two_names_is_of_its_kind():
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3))
    model[4] = model[2]
    kinds, _ = structure(Coupling.trace(model.append(nn.Linear(6, 3)), torch.randn(2, 4)), model, "0")
    assert {kind for kind, _ in kinds} == {"Linear"}


def test_layers_that_are_made_of_others_are_told_apart_by_their_kind():
    norms = LayerNormAct2d(8), GroupNormAct(8, 1), LayerNormAct2d(8)
    model = nn.Sequential(*(layer for norm in norms for layer in (nn.Conv2d(3, 8, 1), norm, nn.Conv2d(8, 3, 1))))
    coupling = Coupling.trace(model, torch.randn(2, 3, 4, 4), ["2", "5", "8"])
    first, second, third = (structure(coupling, model, name) for name in ("0", "3", "6"))
    assert first == third
    assert first != second


def test_every_structure_loses_the_same_share_however_its_weights_are_scaled():
    model = hfp.create_model(VIT[0], **VIT[1])
    with torch.no_grad():
        for block in model.blocks:
            block.mlp.fc1.weight.mul_(1e-3)
    inputs, budget = torch.randn(2, 3, 32, 32), hfp.Budget(ratio=1 / 3)
    left = {
        ranking: hfp.prune(model, inputs, budget, importance=norms, ranking=ranking).model.blocks
        for ranking in ("global", "isomorphic")
    }
    units = {ranking: sum(block.mlp.fc1.out_features for block in blocks) for ranking, blocks in left.items()}
    assert units["global"] < units["isomorphic"]
    assert units["isomorphic"] == pytest.approx(2 * 768 * 2 / 3, abs=2)


class Coarse(nn.Sequential):
    """A narrow layer of a structure of its own, beside a wide one."""

    def __init__(self) -> None:
        narrow = nn.Linear(8, 4), nn.LayerNorm(4), nn.Linear(4, 8)
        super().__init__(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 8), nn.ReLU(), *narrow)


@pytest.mark.parametrize(
    ("ranking", "budget"),
    [
        ("isomorphic", hfp.Budget(ratio=0.5)),
        ("isomorphic", hfp.Budget(params=0.5)),
        ("layer", hfp.Budget(ratio=0.5)),
        ("layer", hfp.Budget(params=0.5)),
    ],
)
def test_every_structure_loses_the_same_share_in_many_steps(ranking, budget):
    model = Coarse()
    result = hfp.prune(model, torch.randn(2, 8), budget, ranking=ranking, steps=8, ignored_layers=["2"])
    assert result.model[0].out_features == pytest.approx(32, abs=4)
    assert result.model[4].out_features == 2


@pytest.mark.parametrize("ranking", ["global", "isomorphic"])
def test_no_more_than_the_share_goes_where_steps_leave_layers_a_single_channel(ranking):
    narrow = [layer for _ in range(8) for layer in (nn.Linear(8, 2), nn.ReLU(), nn.Linear(2, 8), nn.ReLU())]
    model = nn.Sequential(nn.Linear(8, 40), nn.ReLU(), nn.Linear(40, 8), *narrow)
    ignored = [name for name, layer in model.named_modules() if getattr(layer, "out_features", 0) == 8]
    budget = hfp.Budget(ratio=0.5)
    result = hfp.prune(model, torch.randn(2, 8), budget, ranking=ranking, steps=6, ignored_layers=ignored)
    left = sum(
        layer.out_features
        for name, layer in result.model.named_modules()
        if name and name not in ignored and isinstance(layer, nn.Linear)
    )
    assert left == 28
    assert result.report.ratio == 0.5


@pytest.mark.parametrize("steps", [1, 4])
def test_the_same_channels_stay_as_by_torch_pruning_where_no_share_is_rounded(steps):
    torch.manual_seed(0)
    model, inputs = hfp.create_model("resnet8", num_classes=10, in_channels=3), torch.randn(2, 3, 16, 16)
    result = hfp.prune(
        model, inputs, hfp.Budget(ratio=0.5), ranking="isomorphic", steps=steps, ignored_layers=["classifier"]
    )
    importance = tp.importance.GroupMagnitudeImportance(p=2)
    pruner = tp.pruner.BasePruner(
        model, inputs, importance, global_pruning=True, isomorphic=True, pruning_ratio=0.5, iterative_steps=steps,
        ignored_layers=[model.classifier],
    )  # fmt: skip
    with hfp.reconstruct.record(model, inputs) as recording:
        for _ in range(steps):
            pruner.step()
    assert recording.index_map == result.index_map


def norms(group: tp.dependency.Group) -> torch.Tensor:
    return tp.importance.GroupMagnitudeImportance(normalizer=None)(group)
