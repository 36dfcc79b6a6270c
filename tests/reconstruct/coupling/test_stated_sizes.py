"""Sizes that code reads from attributes follow the channels, wherever the module keeps them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

import hfp
from hfp.reconstruct import Coupling, MapError, compact_model, load_pruned
from hfp.reconstruct.models.attributes import apply

X = torch.randn(3, 5, 12, generator=torch.Generator().manual_seed(0))


class Fused(nn.Module):
    """Grouped-query attention with one projection, whose parts are cut by sizes of a configuration."""

    def __init__(self, config: SimpleNamespace) -> None:
        super().__init__()
        self.config, self.head_dim = config, 3
        self.qkv = nn.Linear(12, (config.heads + 2 * config.groups) * self.head_dim)
        self.out = nn.Linear(config.heads * self.head_dim, 12)

    def forward(self, x: Tensor) -> Tensor:
        queries, keys = self.config.heads * self.head_dim, self.config.groups * self.head_dim
        qkv = self.qkv(x)
        parts = qkv[..., :queries], qkv[..., queries : queries + keys], qkv[..., queries + keys :]
        q, k, v = (part.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for part in parts)
        k, v = (part.repeat_interleave(self.config.heads // self.config.groups, dim=1) for part in (k, v))
        found = (q @ k.transpose(-1, -2) / 2).softmax(-1) @ v
        return self.out(found.transpose(1, 2).flatten(2))


class Interleaved(nn.Module):
    """Attention with one projection that holds the queries of each group beside its key and value."""

    def __init__(self, config: SimpleNamespace) -> None:
        super().__init__()
        self.heads, self.groups, self.size, self.longest = config.heads, config.groups, 3, config.heads
        self.qkv = nn.Linear(12, (self.heads + 2 * self.groups) * self.size)
        self.out = nn.Linear(self.heads * self.size, 12)

    def forward(self, x: Tensor) -> Tensor:
        each = self.heads // self.groups
        qkv = self.qkv(x[:, : self.longest]).unflatten(-1, (-1, each + 2, self.size))
        q, k, v = qkv[:, :, :, :-2], qkv[:, :, :, [-2]].expand(-1, -1, -1, each, -1), qkv[:, :, :, [-1]]
        q, k, v = (part.expand_as(q).flatten(2, 3).transpose(1, 2) for part in (q, k, v))
        found = (q @ k.transpose(-1, -2) / 2).softmax(-1) @ v
        found = found.reshape(len(x), self.heads, x.shape[1], self.size)
        return self.out(found.transpose(1, 2).flatten(2))


def network(kind: type[nn.Module], heads: int = 8, groups: int = 4) -> nn.Module:
    torch.manual_seed(0)
    config = SimpleNamespace(heads=heads, groups=groups, other=5)
    return nn.Sequential(nn.Linear(12, 12), kind(config), kind(config), nn.Linear(12, 2)).eval()


@pytest.mark.parametrize("kind", [Fused, Interleaved])
def test_whole_groups_of_heads_go_from_a_fused_projection(kind: type[nn.Module]) -> None:
    model = network(kind)
    coupling = Coupling.trace(model, X)
    assert coupling.sizes["1.qkv"] == coupling.sizes["2.qkv"] == 4
    plan = coupling.plan({"1.qkv": [0, 3], "2.qkv": [1]})
    assert coupling.checked(model, X, plan) is coupling
    index_map = coupling.index_map(plan)
    assert index_map.tensors["1.qkv.weight"].compact_shape == (24, 12)
    with torch.no_grad():
        found, expected = compact_model(model, index_map)(X), coupling.masked_output(model, X, index_map)
    assert torch.allclose(found, expected, atol=1e-6)


def test_modules_that_share_a_configuration_lose_different_numbers_of_heads() -> None:
    model = network(Fused)
    coupling = Coupling.trace(model, X)
    index_map = coupling.index_map(coupling.plan({"1.qkv": [0, 3], "2.qkv": [1]}))
    assert dict(index_map.attributes["1"]) == {"config.heads": 4, "config.groups": 2}
    small = compact_model(model, index_map)
    assert [small[place].config.heads for place in (1, 2)] == [4, 2]
    assert [model[place].config.heads for place in (1, 2)] == [8, 8]


def test_two_numbers_that_code_computes_with_follow_together() -> None:
    coupling = Coupling.trace(network(Interleaved), X)
    index_map = coupling.index_map(coupling.plan({"1.qkv": [0, 3]}))
    assert dict(index_map.attributes["1"]) == {"heads": 4, "groups": 2}


def test_sizes_in_a_configuration_are_saved_with_the_model(tmp_path) -> None:
    result = hfp.prune(network(Fused), X, hfp.Budget(ratio=0.5), importance="l2")
    assert "config.heads" in result.index_map.attributes["1"]
    hfp.save_pruned(result, tmp_path / "small.safetensors")
    found = load_pruned(tmp_path / "small.safetensors", network(Fused))
    with torch.no_grad():
        assert torch.equal(found.model(X), result.model(X))


@pytest.mark.parametrize("key", ["config._hidden", "config.none", "none.heads", "config.heads.real", "forward.heads"])
def test_only_sizes_that_are_there_can_be_set(key: str) -> None:
    with pytest.raises(MapError, match="has no plain attribute"):
        apply(network(Fused), {"1": {key: 2}})


class Counting(nn.Module):
    """Attention that keeps other numbers which are equal to the number of its heads by chance."""

    def __init__(self, config: SimpleNamespace) -> None:
        super().__init__()
        self.heads, self.first, self.size = config.heads, config.heads, 6
        self.q, self.v, self.out = nn.Linear(12, 24), nn.Linear(12, 24), nn.Linear(24, 12)

    def forward(self, x: Tensor) -> Tensor:
        q, v = (part(x).view(*x.shape[:2], self.heads, self.size).transpose(1, 2) for part in (self.q, self.v))
        turned = torch.cat([q[..., : self.first] * 2, q[..., self.first :]], -1)
        found = (turned @ q.transpose(-1, -2) / 2).softmax(-1) @ v
        return self.out(found.transpose(1, 2).flatten(2))


def test_a_number_that_is_equal_by_chance_stays() -> None:
    coupling = Coupling.trace(network(Counting, heads=4), X)
    assert coupling.sizes["1.q"] == 4
    index_map = coupling.index_map(coupling.plan({"1.q": [0, 2]}))
    assert dict(index_map.attributes["1"]) == {"heads": 2}


class ScaledByWidth(nn.Module):
    """Attention that is scaled by a size computed from the width of its inputs, and a hidden layer behind it."""

    def __init__(self, config: SimpleNamespace) -> None:
        super().__init__()
        self.heads = config.heads
        self.qkv, self.out = nn.Linear(12, 36), nn.Linear(12, 12)
        self.enter, self.leave = nn.Linear(12, 20), nn.Linear(20, 12)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).reshape(*x.shape[:2], 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-1, -2) * (x.shape[-1] // self.heads) ** -0.5
        x = x + self.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
        return x + self.leave(self.enter(x).relu())


def test_a_size_that_code_computes_with_leaves_other_layers_of_its_kind_alone() -> None:
    model = network(ScaledByWidth, heads=4)
    coupling = Coupling.trace(model, X).verified(model, X)
    assert {"1.enter": 20, "2.enter": 20}.items() <= coupling.sizes.items()
    assert coupling.left_alone["0"] == coupling.left_alone["2.out"] == "1: mul depends on the size of this dimension"


class ManyScaled(nn.Module):
    """Twelve hidden layers that one loop scales by their width."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv1d(2, 8, 1), nn.Conv1d(8, 4, 1))
        self.enter = nn.ModuleList(nn.Linear(4, 6) for _ in range(12))
        self.leave = nn.ModuleList(nn.Linear(6, 4) for _ in range(12))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).mean(2)
        for enter, leave in zip(self.enter, self.leave, strict=True):
            x = x + leave(hidden := enter(x).relu()).mul(torch.tensor(float(hidden.shape[-1])) ** -0.5).tanh()
        return x


def test_sizes_that_one_loop_computes_with_are_left_alone_at_once() -> None:
    torch.manual_seed(0)
    model, x = ManyScaled(), torch.randn(4, 2, 3)
    assert Coupling.trace(model, x).verified(model, x).names == ("stem.0",)


class Alternating(nn.Module):
    """A gated layer whose gates and values alternate."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(12, 20), nn.Linear(10, 2)

    def forward(self, x: Tensor) -> Tensor:
        both = self.enter(x)
        return self.leave(both[..., ::2].sigmoid() * both[..., 1::2])


def test_what_alternates_goes_in_pairs() -> None:
    torch.manual_seed(0)
    model = Alternating().eval()
    coupling = Coupling.trace(model, X)
    assert dict(coupling.sizes) == {"enter": 10}
    index_map = coupling.index_map(coupling.plan({"enter": [1, 4, 5]}))
    assert index_map.tensors["enter.weight"].kept[0].tolist() == [2, 3, 8, 9, 10, 11]
    with torch.no_grad():
        assert torch.allclose(compact_model(model, index_map)(X), coupling.masked_output(model, X, index_map))


def test_a_group_that_is_to_stay_is_left_alone_before_smaller_models_are_tried() -> None:
    coupling = Coupling.trace(network(Fused), X, leave=lambda found: dict.fromkeys(found.names[1:2], "not wanted"))
    assert coupling.left_alone["1.qkv"] == "not wanted"
    assert "2.qkv" in coupling.names


def test_the_outputs_of_a_head_lie_together_and_those_of_a_part_of_every_head_do_not() -> None:
    model = network(Counting, heads=4)
    assert Coupling.trace(model, X).longest_run("1.q") == 6
    assert Coupling.trace(model, X, prune_heads=False).longest_run("1.v") == 1


def test_why_heads_stay_is_told_by_the_number_of_heads() -> None:
    class Biased(Counting):
        def forward(self, x: Tensor) -> Tensor:
            q, v = (part(x).view(*x.shape[:2], self.heads, self.size).transpose(1, 2) for part in (self.q, self.v))
            scores = q @ q.transpose(-1, -2) + torch.arange(4.0).view(4, 1, 1)
            return self.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))

    coupling = Coupling.trace(network(Biased, heads=4), X)
    assert coupling.factors_kept("1.q") == {4: "1: add combines it with a dimension of fixed size"}


def test_statistics_of_a_masked_model_run_over_the_channels_that_are_left() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 8), nn.LayerNorm(8), nn.Linear(8, 2)).eval()
    coupling = Coupling.trace(model, X)
    index_map = coupling.index_map(coupling.plan({"0": [0, 2, 3, 7]}))
    small = compact_model(model, index_map)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter *= index_map.tensors[name].mask()
        apart = (model(X) - small(X)).abs().max()
        with coupling.masked(model, index_map):
            assert torch.allclose(model(X), small(X), atol=1e-6)
    assert apart > 0.01
