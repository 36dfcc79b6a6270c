import copy
import functools
import math
import random

import pytest
import torch
from networks.operations import NETWORKS, Attention, Net, conv
from torch import Tensor, nn

from hfp.reconstruct import Coupling, IndexMap, MapError, Plan, compact_model
from hfp.reconstruct.coupling.changes import cut_lines, left_alone
from hfp.reconstruct.coupling.checking import compare
from hfp.reconstruct.coupling.trials import FailedOperation, trial


def made(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    make, shape = NETWORKS[name]
    model = make().double().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
        if isinstance(module, nn.BatchNorm2d | nn.LayerNorm | nn.GroupNorm):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    return model, torch.randn(shape, dtype=torch.float64)


def half(coupling: Coupling, seed: int = 0) -> Plan:
    """Random channels, about half of every group; linked groups lose the same share."""
    chance = random.Random(seed)
    kept = {}
    for names in coupling.linked:
        parts = math.gcd(*(coupling.sizes[name] for name in names))
        for name in names:
            left = coupling.sizes[name] * (parts - parts // 2) // parts
            kept[name] = sorted(chance.sample(range(coupling.sizes[name]), left))
    return coupling.plan(kept)


class KeptNorm(nn.Module):
    """Layer or group norm over the kept channels only, by its definition."""

    def __init__(self, norm: nn.Module, weight: Tensor, kept: Tensor, groups: int) -> None:
        super().__init__()
        self.dim = -1 if isinstance(norm, nn.LayerNorm) else 1
        self.weight, self.bias, self.eps, self.kept, self.groups = weight, norm.bias, norm.eps, kept, groups

    def forward(self, x: Tensor) -> Tensor:
        part = x.index_select(self.dim, self.kept).movedim(self.dim, -1)
        if self.dim == -1:
            groups = part.unsqueeze(-2).unsqueeze(-2)
            mean, var = part.mean(-1, keepdim=True), part.var(-1, correction=0, keepdim=True)
        else:
            groups = part.unflatten(-1, (self.groups, -1))
            dims = (*range(1, groups.dim() - 2), -1)
            mean, var = (
                f.expand_as(groups).flatten(-2)
                for f in (groups.mean(dims, keepdim=True), groups.var(dims, correction=0, keepdim=True))
            )
        y = (part - mean) / (var + self.eps).sqrt() * self.weight[self.kept] + self.bias[self.kept]
        return torch.zeros_like(x).index_copy(self.dim, self.kept, y.movedim(-1, self.dim))


def without(model: nn.Module, index_map: IndexMap, x: Tensor) -> Tensor:
    """What the full model computes without the removed channels: plain masking, norms over what is left."""
    own = copy.deepcopy(model)
    state = {name: tensor * index_map.tensors[name].mask() for name, tensor in own.state_dict().items()}
    own.load_state_dict(state)
    for name, module in list(own.named_modules()):
        if isinstance(module, nn.LayerNorm | nn.GroupNorm):
            kept = index_map.tensors[f"{name}.weight"].kept[0]
            kept = torch.arange(len(module.weight)) if kept is None else kept
            groups = index_map.attributes.get(name, {}).get("num_groups", getattr(module, "num_groups", 1))
            parent, _, leaf = name.rpartition(".")
            setattr(own.get_submodule(parent), leaf, KeptNorm(module, module.weight.data, kept, groups))
    with torch.no_grad():
        return own(x)


def assert_computes_the_same(model: nn.Module, index_map: IndexMap, x: Tensor) -> None:
    with torch.no_grad():
        found = compact_model(model, index_map)(x)
    expected = without(model, index_map, x)
    assert found.shape == expected.shape
    assert torch.allclose(found, expected, rtol=1e-9, atol=1e-11)
    with torch.no_grad():
        assert not torch.allclose(found, model(x), rtol=1e-3)  # what was removed mattered


STANDARDISED = "standardised weights"  # its norm is of weights: masking by hand needs its own reference


@pytest.mark.parametrize("name", [name for name in NETWORKS if name not in (STANDARDISED, "torch's own attention")])
def test_compact_models_compute_what_the_full_model_does_without_the_channels(name):
    model, x = made(name)
    coupling = Coupling.trace(model, x)
    plan = half(coupling)
    assert coupling.checked(model, x, plan) is coupling
    index_map = coupling.index_map(plan)
    assert index_map.kept_entries < 0.8 * index_map.full_entries
    assert_computes_the_same(model, index_map, x)
    state = model.state_dict()
    back = index_map.embed(index_map.restrict(state), into=state)
    assert all(torch.equal(back[key], state[key]) for key in state)
    assert torch.allclose(coupling.masked_output(model, x, index_map), without(model, index_map, x), rtol=1e-9)


def test_weights_standardised_in_the_forward_pass():
    model, x = made(STANDARDISED)
    coupling = Coupling.trace(model, x)
    index_map = coupling.index_map(half(coupling))
    small = compact_model(model, index_map)
    weight = index_map.tensors["b.weight"].restrict(model.b.weight.data)  # by hand: kept entries, then the norm
    flat = weight.flatten(1)
    weight = ((flat - flat.mean(1, True)) / (flat.var(1, correction=0, keepdim=True) + 1e-5).sqrt()).view_as(weight)
    expected = small.head(nn.functional.conv2d(small.a(x), weight, small.b.bias, padding=1))
    assert weight.shape == (5, 4, 3, 3)
    assert torch.allclose(small(x), expected, rtol=1e-9)
    assert coupling.checked(model, x, half(coupling)) is coupling


def test_what_torch_writes_down_in_its_own_attention_is_left_alone():
    model, x = made("torch's own attention")
    coupling = Coupling.trace(model, x)
    plan = half(coupling)
    assert coupling.checked(model, x, plan) is coupling
    assert coupling.index_map(plan).tensors["b.linear1.weight"].compact_shape[0] == 10
    assert_computes_the_same(model, coupling.index_map(plan), x)


def test_groups_are_named_by_the_layer_that_writes_them():
    coupling = Coupling.trace(*made("residual"))
    assert coupling.sizes == {"a": 12, "b": 10}
    dense = Coupling.trace(*made("dense"))
    assert dense.sizes == {"a": 8, "b": 6, "c": 5}


def test_heads_go_whole_or_in_parts():
    model, x = made("attention, stated")
    whole = Coupling.trace(model, x)
    assert (whole.sizes["attention.qkv"], whole.layer_channels("attention.qkv")) == (6, 12)
    parts = Coupling.trace(model, x, prune_heads=False)
    assert (parts.sizes["attention.qkv"], parts.layer_channels("attention.qkv")) == (4, 18)
    for coupling, attribute in ((whole, "heads"), (parts, "size")):
        index_map = coupling.index_map(half(coupling))
        assert attribute in index_map.attributes["attention"]
        assert_computes_the_same(model, index_map, x)


def test_heads_of_fused_attention_keep_their_size():
    model, x = made("attention, fused")
    coupling = Coupling.trace(model, x)
    assert coupling.sizes["attention.qkv"] == 6
    assert "size" not in coupling.index_map(half(coupling)).attributes["attention"]


def test_heads_that_cannot_lose_a_part_stay_where_no_whole_heads_are_asked_for():
    model, x = made("attention, fused")
    coupling = Coupling.trace(model, x, prune_heads=False)
    assert "attention.qkv" not in coupling.sizes
    assert "heads of attention stay" in coupling.left_alone["attention.qkv"]
    assert_computes_the_same(model, coupling.index_map(half(coupling)), x)


class HeadsBesideSamples(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.out, self.heads, self.size = nn.Linear(8, 36), nn.Linear(12, 3), 4, 3

    def forward(self, x):
        split = self.qkv(x).view(len(x), -1, 3, self.heads, self.size).permute(2, 0, 3, 1, 4)
        query, key, value = split.reshape(3, len(x) * self.heads, -1, self.size).unbind(0)
        found = nn.functional.scaled_dot_product_attention(query, key, value).view(len(x), self.heads, -1, self.size)
        return self.out(found.transpose(1, 2).reshape(len(x), -1, self.heads * self.size))


def test_heads_that_are_one_dimension_with_the_samples_stay_too():
    model, x = HeadsBesideSamples(), torch.randn(2, 5, 8)
    assert Coupling.trace(model, x).sizes == {"qkv": 4}
    coupling = Coupling.trace(model, x, prune_heads=False)
    assert not coupling.sizes
    assert "heads of attention stay" in coupling.left_alone["qkv"]


def test_sizes_that_the_code_takes_to_be_tied_are_linked():
    model, x = made("attention, computed")
    coupling = Coupling.trace(model, x)
    assert coupling.linked == (("embed", "attention.qkv"), ("mlp.0",))
    with pytest.raises(MapError, match="same share of their channels"):
        coupling.plan({"embed": range(12)})


@pytest.mark.parametrize(
    ("name", "layer", "reason"),
    [
        ("a size written in the code", "a", "a: .*|the model: view depends on its size"),
        ("the largest channels", "b", "the largest of this dimension are picked"),
        ("residual", "head", "it is an output of the model"),
    ],
)
def test_layers_that_are_left_alone_have_a_reason(name, layer, reason):
    coupling = Coupling.trace(*made(name))
    assert layer not in coupling.sizes
    assert __import__("re").search(reason, coupling.left_alone[layer])


def test_ignored_layers_keep_their_outputs():
    model, x = made("residual")
    for ignored in (["b"], [model.b], "b", model.b):
        coupling = Coupling.trace(model, x, ignored_layers=ignored)
        assert coupling.names == ("a",)
        assert coupling.left_alone["b"] == "it is an ignored layer"
    with pytest.raises(MapError, match="ignored layer 'nothing' is not in the model; there are 'a', "):
        Coupling.trace(model, x, ignored_layers=["nothing"])
    residual = nn.ModuleDict({"residual": model})
    residual.forward = lambda x: model(x)
    with pytest.raises(MapError, match="ignored layer 'residul' is not in the model; did you mean residual"):
        Coupling.trace(residual, x, ignored_layers=["residul"])


def test_operations_without_a_rule_fix_what_they_touch():
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.head = nn.Linear(4, 6), nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.b(self.a(x).renorm(2, 0, 1.0)).relu())

    coupling = Coupling.trace(Odd(), torch.randn(5, 4))
    assert coupling.names == ("b",)
    assert coupling.unknown == {"renorm"}
    assert "renorm is not followed" in coupling.left_alone["a"]


@pytest.mark.parametrize(
    "between",
    [
        lambda s, h: h + torch.normal(0.0, 1.0, tuple(h.shape)),
        lambda s, h: h + torch.normal(0.0, h.abs()),
        lambda s, h: h * s.scale.softmax(0) * s.scale.sum(0),
        lambda s, h: h * s.scale.max(0).values + s.scale.sort().values,
        lambda s, h: h * s.scale.flip(0) - s.scale.squeeze(0) + s.scale.transpose(0, 0),
    ],
    ids=["noise of a size", "noise of a deviation", "sums of a number", "order of a number", "shape of a number"],
)
def test_noise_and_operations_on_single_numbers_are_followed(between):
    model = Net(between, scale=nn.Parameter(torch.tensor(0.5)))
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), model, nn.Linear(6, 3)).eval()
    coupling = Coupling.trace(model, torch.randn(5, 4))
    assert coupling.names == ("0",) and not coupling.unknown
    assert coupling.verified(model, torch.randn(5, 4)) is coupling


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_padding_and_resizing_are_followed_in_any_number_of_dimensions(dims):
    kind = getattr(nn, f"Conv{dims}d")
    pads = [getattr(nn, f"{name}Pad{dims}d")(1) for name in ("Reflection", "Replication")]
    middle = (*pads, nn.Upsample(scale_factor=2, mode="nearest-exact"))
    model = nn.Sequential(kind(2, 6, 1), *middle, kind(6, 3, 1))
    coupling = Coupling.trace(model, torch.randn(2, 2, *[4] * dims))
    assert coupling.names == ("0",) and not coupling.unknown


def test_numbers_that_are_read_as_others_of_another_width_stay():
    bits = Net(lambda s, h: h + h.view(torch.int16).sum(-1, keepdim=True))
    coupling = Coupling.trace(nn.Sequential(nn.Linear(4, 6), bits, nn.Linear(6, 3)), torch.randn(5, 4))
    assert not coupling.names and coupling.unknown == {"view"}


@pytest.mark.parametrize("groups", [1, 2])
def test_a_pointwise_convolution_may_say_that_it_pads_nothing_by_a_word(groups):
    middle = nn.Conv2d(8, 8, 1, padding="valid", groups=groups)
    model = nn.Sequential(conv(3, 8), middle, conv(8, 4)).eval()
    coupling = Coupling.trace(model, torch.randn(2, 3, 8, 8))
    assert "0" in coupling.names
    assert coupling.verified(model, torch.randn(2, 3, 8, 8)) is coupling


def test_a_wrong_map_is_found_where_it_goes_wrong():
    model, x = made("residual")
    coupling = Coupling.trace(model, x)
    plan = half(coupling)
    right = coupling.index_map(plan)
    other = coupling.index_map(coupling.plan({**plan.kept, "b": sorted({(c + 1) % 10 for c in plan.kept["b"]})}))
    wrong = IndexMap({**right.tensors, "c.weight": other.tensors["c.weight"]}, right.attributes)
    gone = coupling._wiring.gone(plan.kept)
    assert compare(coupling._wiring, model, x, gone, right).difference is None
    call, message = compare(coupling._wiring, model, x, gone, wrong).difference
    assert call.key[:2] == ("c", "convolution")
    assert "differ" in message


def test_a_difference_leaves_the_place_alone():
    class Counting(nn.Module):
        """Divides by the number of channels that it was made with."""

        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.head = nn.Linear(4, 6), nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            return self.head(self.b(x / x.shape[-1]))

    torch.manual_seed(0)
    model, x = Counting(), torch.randn(5, 4)
    coupling = Coupling.trace(model, x)
    checked = coupling.checked(model, x, half(coupling))
    assert checked.names == ("b",)
    assert "computes something else in the compact model" in checked.left_alone["a"]
    assert checked.checked(model, x, half(checked)) is checked


def test_limits_that_are_infinite_stay_so_in_the_check():
    class Clipped(nn.Linear):
        """A layer that clips its inputs by limits, which are infinite unless somebody sets them."""

        def __init__(self, inputs: int, outputs: int) -> None:
            super().__init__(inputs, outputs)
            self.register_buffer("lowest", torch.full((inputs,), -math.inf))
            self.register_buffer("highest", torch.full((inputs,), math.inf))

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(torch.minimum(torch.maximum(x, self.lowest), self.highest))

    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 6), Clipped(6, 3)), torch.randn(5, 4)
    coupling = Coupling.trace(model, x)
    assert coupling.checked(model, x, half(coupling)) is coupling


@pytest.mark.parametrize("way", ("checked", "verified"))
def test_a_size_that_the_first_trial_happens_to_fit_is_found_by_the_next(way):
    class Stating(nn.Module):
        """States the size of its first layer, but for one size."""

        lucky = 0

        def __init__(self) -> None:
            super().__init__()
            self.size = 16
            self.a, self.head = nn.Linear(4, 16), nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            return self.head(x if x.shape[1] == self.lucky else x.view(len(x), self.size))

    torch.manual_seed(0)
    model, x = Stating(), torch.randn(5, 4)
    wiring = Coupling.trace(model, x)._wiring
    Stating.lucky = wiring.left(wiring.groups["a"].line, trial(wiring, 0))
    coupling = Coupling.trace(model, x)
    plan = coupling.plan({"a": range(4)})
    assert "size" not in coupling.index_map(plan).attributes.get("", {})
    found = coupling.verified(model, x) if way == "verified" else coupling.checked(model, x, plan)
    assert found is not coupling
    assert found.index_map(plan).attributes[""]["size"] == 4
    assert found.checked(model, x, plan) is found


def test_the_model_is_not_changed_and_weights_are_not_needed():
    model, x = made("attention, stated")
    model.train()
    model.embed.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    attributes = {name: dict(vars(module)) for name, module in model.named_modules()}
    coupling = Coupling.trace(model, x)
    index_map = coupling.index_map(half(coupling))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert attributes == {name: dict(vars(module)) for name, module in model.named_modules()}
    empty = copy.deepcopy(model).to("meta")
    assert Coupling.trace(empty, x.to("meta")).index_map(half(coupling)) == index_map


def test_constants_outside_the_state_are_traced_with_weights():
    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.head = nn.Linear(4, 6), nn.Linear(6, 3)
            self.per_channel = [torch.arange(6.0)]

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.a(x) * self.per_channel[0])

    coupling = Coupling.trace(Constant(), torch.randn(5, 4))
    assert coupling.names == ()
    assert "dimension of fixed size" in coupling.left_alone["a"]


def test_inputs_may_be_a_tuple_or_keywords():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.head = nn.Linear(4, 6), nn.Linear(5, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
            return {"out": self.head(self.a(x) + self.b(y))}

    x, y = torch.randn(2, 4), torch.randn(2, 5)
    for inputs in ((x, y), {"y": y, "x": x}):
        assert Coupling.trace(Two(), inputs).sizes == {"a": 6}


def test_refuses_what_does_not_run_and_plans_of_others():
    model, x = made("residual")
    with pytest.raises(MapError, match="does not run on the example inputs"):
        Coupling.trace(model, torch.randn(2, 4, 8, 8, dtype=torch.float64))
    coupling = Coupling.trace(model, x)
    with pytest.raises(MapError, match="other coupled groups"):
        coupling.index_map(Plan({"a": 3}, {}))
    with pytest.raises(MapError, match="no coupled group is called 'nothing'"):
        coupling.plan({"nothing": [0]})


def test_torch_pruning_sees_one_score_for_each_channel():
    import torch_pruning as tp

    model, x = made("attention, stated")
    coupling = Coupling.trace(model, x)
    groups = coupling.groups_of(model)
    score = tp.importance.GroupMagnitudeImportance(p=1, group_reduction="sum", normalizer=None)
    found = score(groups("attention.qkv"))
    rows = model.attention.qkv.weight.abs().sum(1).view(3, 6, 4).sum((0, 2))
    columns = model.attention.out.weight.abs().sum(0).view(6, 4).sum(1)
    assert torch.allclose(found.double(), rows + columns, rtol=1e-5)
    assert [len(score(groups(name))) for name in coupling.names] == list(coupling.sizes.values())


def test_attention_follows_its_bias_table():
    model, x = made("attention, stated")
    assert isinstance(model.attention, Attention)
    coupling = Coupling.trace(model, x)
    index_map = coupling.index_map(half(coupling))
    assert index_map.tensors["attention.bias"].compact_shape == (10, 3)


@functools.lru_cache
def _positions(count: int, device: torch.device, kind: torch.dtype) -> Tensor:
    return torch.arange(count, device=device, dtype=kind).mul(0.5)[:, None]


class Remembering(nn.Module):
    """Computes a table of positions once and keeps it outside of the model, as DINOv3 of transformers does."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        table = _positions(x.shape[-2], x.device, x.dtype).mul(2)
        return self.two(self.one(x).mul(table))


def test_a_table_that_is_kept_outside_of_the_model_is_a_constant_in_every_run():
    _positions.cache_clear()
    model, x = Remembering(), torch.randn(2, 3, 4)
    for _ in range(2):  # the second trace finds what the first one left behind
        coupling = Coupling.trace(model, x).verified(model, x)
        assert coupling.sizes == {"one": 6}


class Forgetful(nn.Module):
    """Does something else in every second run."""

    runs = 0

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        Forgetful.runs += 1
        y = self.one(x).relu()
        return self.two(y[:, :2] if Forgetful.runs % 2 else y[:, :3]).mean(1)


def test_a_model_that_does_something_else_in_every_run_is_refused():
    with pytest.raises(MapError, match="is not the same in a second run of the model"):
        Coupling.trace(Forgetful(), torch.randn(2, 5, 4))


def test_deformable_attention_loses_whole_heads_with_their_places():
    model, x = made("deformable attention")
    coupling = Coupling.trace(model, x)
    assert coupling.sizes == {"a": 24, "value": 4, "b": 12}
    assert {member.layer for member in coupling.members("value")} == {"value", "places", "weights", "b"}


def test_attention_that_checks_its_width_loses_heads_and_width_together():
    coupling = Coupling.trace(*made("attention that checks its width"))
    assert sorted(coupling.sizes.values()) == [4, 4, 4, 4, 16]
    assert len(coupling.linked) == 1


def test_code_of_the_whole_model_that_fails_leaves_something_alone():
    torch.manual_seed(0)
    model = Net(lambda s, x: s.b(s.a(x).relu()) * 2, a=nn.Linear(4, 6), b=nn.Linear(6, 2))
    wiring = Coupling.trace(model, torch.randn(2, 4))._wiring
    last = list(wiring.trace.calls.values())[-1]
    gone = trial(wiring, seed=0)
    assert last.key[:2] == ("", "mul") and not cut_lines(wiring, last, gone)
    change = left_alone(wiring, FailedOperation(0, last, "another size", ""), gone)
    assert 6 in {len(line) for line, _ in change.fixed}
