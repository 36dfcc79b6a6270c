"""The table of layers against what torch-pruning really removes."""

import copy

import pytest
import torch
from networks.criteria import NETWORKS, groups, make
from torch import nn

from hfp.importance import CriterionError, DiagonalImportance, Slot, register_layer
from hfp.importance.groups.members import members


class Count(DiagonalImportance):
    """Every entry of every tensor counts 1: a score is the number of entries that a channel holds in its group."""

    def _entries(self, name, weight):
        return torch.ones_like(weight)

    def statistics(self, name):
        raise NotImplementedError


def entries(model):
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", NETWORKS)
def test_every_entry_that_pruning_removes_is_scored_and_no_other(name):
    model = make(name)
    for root, group in groups(model).items():
        channels = len(group[0].idxs)
        units = (
            2
            if any(isinstance(m.layer, nn.GroupNorm) or getattr(m.layer, "groups", 1) == 2 for m in members(group))
            else 1
        )
        if root == "proj":
            units = 2
        removed = [channels // units * unit for unit in range(units)]
        pruned = copy.deepcopy(model)
        groups(pruned)[root].prune(removed)
        both = {m.name for m in members(group) if m.direction == "in"} & {
            m.name for m in members(group) if m.direction == "out"
        }
        twice = sum(
            len(removed) * (len(removed) - 1) * m.layer.weight[0, 0].numel()  # of two channels at once
            for m in members(group)
            if m.name in both and m.direction == "in"
        )
        assert Count()(group)[removed].sum() - twice == entries(model) - entries(pruned), root


def test_grouped_and_transposed_convolutions_sum_their_own_group():
    conv = nn.Conv2d(4, 6, 3, groups=2)
    up = nn.ConvTranspose2d(4, 6, 3, groups=2)
    from hfp.importance.layers import channel_sums, slots_of

    for layer in (conv, up):
        weight = layer.weight.detach()
        for direction, channels in (("in", 4), ("out", 6)):
            slot = next(slot for slot in slots_of(layer, direction, "layer") if slot.tensor == "weight")
            sums = channel_sums(weight, slot, layer.groups)
            assert sums.shape == (channels,)
            for channel in range(channels):
                block = channel // (channels // 2)
                inside = channel % (channels // 2)
                if layer is conv:
                    part = weight[channel] if direction == "out" else weight[3 * block : 3 * block + 3, inside]
                else:
                    part = weight[channel] if direction == "in" else weight[2 * block : 2 * block + 2, inside]
                torch.testing.assert_close(sums[channel], part.sum())


def test_multi_head_attention_holds_a_channel_in_all_its_matrices():
    from hfp.importance.layers import channel_sums, tensors_of

    layer = nn.MultiheadAttention(4, 2)
    total = torch.zeros(4)
    for _, tensor, slot in tensors_of(layer, "out", "attention"):
        total += channel_sums(torch.ones_like(tensor), slot)
    assert total.tolist() == [3 * 4 + 3 * 4 + 3 + 4 + 4 + 1] * 4


class Scale(nn.Module):
    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(3))


def test_unknown_layers_are_errors_that_say_how_to_register():
    from hfp.importance.layers import slots_of

    with pytest.raises(CriterionError, match=r"layer 'body.scale' is a Scale.*register_layer\(Scale, 'out'"):
        slots_of(Scale(), "out", "body.scale")
    register_layer(Scale, "out", (Slot("gain", 0),))
    assert slots_of(Scale(), "out", "body.scale") == (Slot("gain", 0),)
    with pytest.raises(CriterionError, match='a direction is "in" or "out"'):
        register_layer(Scale, "sideways", ())
