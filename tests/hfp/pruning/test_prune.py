"""Pruning to a budget: what is kept, what is reported, and what the caller's model looks like afterwards."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset

import hfp
from hfp.costs.macs import macs, parameters, state_bytes
from hfp.errors import InputError
from hfp.pruning.schedule import RankingRules
from hfp.pruning.tables import folded, layer_table, left_alone_lines
from hfp.reconstruct import Coupling, MapError, Plan, TimmModel, compact_model, record


def network() -> nn.Module:
    torch.manual_seed(0)
    return hfp.create_model("resnet8", num_classes=10, in_channels=1)


IMAGES = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("kind", "count"), [("macs", lambda m: macs(m, IMAGES)), ("params", parameters), ("bytes", state_bytes)]
)
@pytest.mark.parametrize("ranking", ["layer", "global"])
def test_budgets_are_met_from_below(kind, count, ranking):
    model = network()
    result = hfp.prune(model, IMAGES, hfp.Budget(**{kind: 0.4}), ranking=ranking)
    share = count(result.model) / count(model)
    assert 0.98 * 0.4 <= share <= 0.4
    assert result.report.costs[kind] == (count(model), count(result.model))


def test_a_latency_is_met_from_below(monkeypatch):
    clock = lambda models, inputs: [float(parameters(model)) for model in models]  # noqa: E731  (one that is exact)
    for module in ("prune", "planning"):
        monkeypatch.setattr(f"hfp.pruning.{module}.latencies", clock)
    model = network()
    result = hfp.prune(model, IMAGES, hfp.Budget(latency=0.5))
    assert parameters(result.model) <= 0.5 * parameters(model)
    assert result.report.costs["latency"][0] == parameters(model)


def test_a_ratio_goes_everywhere():
    model = network()
    result = hfp.prune(model, IMAGES, hfp.Budget(ratio=0.5))
    assert result.report.ratio == 0.5
    for layer in result.report.layers:
        assert layer.after * 2 == layer.before or layer.reason == "it is an output of the model"


@pytest.mark.parametrize("way", ["name", "module"])
def test_one_ignored_layer_may_be_given_alone(way):
    model = nn.Sequential(nn.Linear(4, 6), nn.Sequential(nn.Linear(6, 8), nn.ReLU()), nn.Linear(8, 2))
    ignored = "1.0" if way == "name" else model[1][0]
    result = hfp.prune(model, torch.randn(2, 4), hfp.Budget(ratio=0.5), ignored_layers=ignored)
    assert [layer.after for layer in result.report.layers] == [3, 8, 2]


@pytest.mark.parametrize("ranking", ["layer", "global"])
def test_a_ratio_in_steps_is_that_of_the_full_model(ranking):
    model = network()
    result = hfp.prune(model, IMAGES, hfp.Budget(ratio=0.5), ranking=ranking, steps=3)
    assert result.report.ratio == pytest.approx(0.5, abs=0.01)
    if ranking == "layer":
        assert {layer.after / layer.before for layer in result.report.layers if layer.reason is None} == {0.5}


def test_nothing_of_the_caller_s_is_changed():
    model = network()
    model.train()
    model(IMAGES).sum().backward()
    for parameter in list(model.parameters())[::2]:
        parameter.requires_grad_(False)
    kept = copy.deepcopy({name: (t, t.grad) for name, t in model.state_dict(keep_vars=True).items()})
    flags = [parameter.requires_grad for parameter in model.parameters()]
    random = torch.random.get_rng_state()
    result = hfp.prune(model, IMAGES, hfp.Budget(macs=0.5), importance="random")
    assert torch.equal(torch.random.get_rng_state(), random)
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert all(module.training for module in model.modules())
    for name, tensor in model.state_dict(keep_vars=True).items():
        value, grad = kept[name]
        assert torch.equal(tensor, value)
        assert tensor.grad is None if grad is None else torch.equal(tensor.grad, grad)
    assert [p.requires_grad for p in result.model.parameters()] == flags
    assert all(module.training for module in result.model.modules())


def test_frozen_models_are_pruned():
    model = network().requires_grad_(False)
    assert hfp.prune(model, IMAGES, hfp.Budget(ratio=0.5)).report.ratio == 0.5


def test_the_map_leads_there_and_back():
    model = network()
    result = hfp.prune(model, IMAGES, hfp.Budget(params=0.3))
    state = model.state_dict()
    compact = result.model.state_dict()
    assert all(torch.equal(tensor, compact[name]) for name, tensor in result.index_map.restrict(state).items())
    back = result.index_map.embed(compact, into=state)
    assert all(torch.equal(back[name], state[name]) for name in state)
    again = compact_model(model, result.index_map).eval()
    with torch.no_grad():
        assert torch.equal(again(IMAGES), result.model.eval()(IMAGES))


NARROW = nn.Sequential(nn.Linear(8, 2), nn.ReLU(), nn.Linear(2, 6), nn.ReLU(), nn.Linear(6, 4))


def test_a_step_that_can_t_be_gone_is_told_with_its_budget():
    with pytest.raises(InputError, match=r"^in step 3 of 3, to macs=0.15: macs can't go down to 0.15 .*: 0.25 is the"):
        hfp.prune(NARROW, torch.randn(4, 8), hfp.Budget(macs=0.15), steps=3)


@pytest.mark.parametrize("budget", [hfp.Budget(ratio=0.9), hfp.Budget(macs=0.25), hfp.Budget(params=0.3)])
def test_steps_after_all_that_can_go_is_gone_change_nothing(budget):
    result = hfp.prune(NARROW, torch.randn(4, 8), budget, steps=40, ranking="global")
    assert [layer.after for layer in result.report.layers] == [1, 1, 4]
    assert result.report.ratio == 0.75
    data, options = [(torch.randn(4, 8), torch.arange(4))], {"loss_fn": cross_entropy, "ranking": "measured"}
    measured = hfp.prune(NARROW, torch.randn(4, 8), budget, steps=6, data=data, repair=None, **options)
    assert [layer.after for layer in measured.report.layers] == [1, 1, 4]


def test_steps_compose_and_score_again():
    model = network()
    result = hfp.prune(model, IMAGES, hfp.Budget(macs=0.4), steps=3)
    assert 0.98 * 0.4 <= macs(result.model, IMAGES) / macs(model, IMAGES) <= 0.4
    state = result.model.state_dict()
    assert all(
        torch.equal(tensor, state[name]) for name, tensor in result.index_map.restrict(model.state_dict()).items()
    )


def test_the_lowest_l1_norms_go():
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    result = hfp.prune(model, torch.randn(2, 4), hfp.Budget(ratio=0.5), importance="l1")
    norms = model[0].weight.abs().sum(1) + model[2].weight.abs().sum(0)
    assert result.index_map.tensors["0.weight"].kept[0].tolist() == sorted(norms.argsort()[3:].tolist())


def test_a_criterion_may_be_any_callable():
    seen: list[str] = []

    def last_first(group: tp.Group) -> Tensor:
        seen.append(group._DG._module2name[group[0].dep.target.module])
        return -torch.arange(float(len(group[0].idxs)))

    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    result = hfp.prune(model, torch.randn(2, 4), hfp.Budget(ratio=0.5), importance=last_first)
    assert result.index_map.tensors["0.weight"].kept[0].tolist() == [0, 1, 2]
    assert seen == ["0"]
    assert result.report.criterion == "function"


@pytest.mark.parametrize("name", ["group-fisher", "taylor"])
def test_criteria_that_need_data_get_it(name):
    batches = [(torch.randn(8, 1, 16, 16), torch.arange(8))]
    result = hfp.prune(network(), IMAGES, hfp.Budget(macs=0.5), importance=name, data=batches, loss_fn=cross_entropy)
    assert result.report.criterion == name


def test_round_to_min_channels_and_ignored_layers():
    model = network()
    name = next(name for name, module in model.named_modules() if isinstance(module, nn.Conv2d) and "." in name)
    result = hfp.prune(
        model, IMAGES, hfp.Budget(ratio=0.7), round_to=4, min_channels=8, ignored_layers=[model.get_submodule(name)]
    )
    layers = {layer.name: layer for layer in result.report.layers}
    assert all(layer.after % 4 == 0 and layer.after >= 8 for layer in layers.values() if layer.reason is None)
    assert layers[name].after == layers[name].before
    assert layers[name].reason == "it is an ignored layer"


def test_the_map_is_what_torch_pruning_s_surgery_removes():
    model = network()
    result = hfp.prune(model, IMAGES, hfp.Budget(ratio=0.4))
    pruned = copy.deepcopy(model)
    with record(pruned, IMAGES) as recording:
        graph = tp.DependencyGraph().build_dependency(pruned, IMAGES)
        for name, module in pruned.named_modules():
            if isinstance(module, nn.Conv2d) and name in Coupling.trace(model, IMAGES).names:
                kept = result.index_map.tensors[f"{name}.weight"].kept[0]
                gone = sorted(set(range(module.out_channels)) - set(kept.tolist()))
                graph.get_pruning_group(module, tp.prune_conv_out_channels, gone).prune()
    assert recording.index_map.tensors == dict(result.index_map.tensors)


def test_saved_and_loaded(tmp_path):
    import timm

    torch.manual_seed(0)
    model, images = timm.create_model("test_resnet", num_classes=7).eval(), torch.randn(2, 3, 64, 64)
    result = hfp.prune(model, images, hfp.Budget(macs=0.5), importance="l1", ranking="isomorphic")
    path = hfp.save_pruned(result, tmp_path / "m.safetensors", timm=TimmModel("test_resnet", {"num_classes": 7}))
    for again in (hfp.load_pruned(path), hfp.load_pruned(path, timm.create_model("test_resnet", num_classes=7))):
        with torch.no_grad():
            assert torch.equal(again.model(images), result.model(images))
        assert again.index_map == result.index_map
        assert (again.metadata["criterion"], again.metadata["budget"]) == ("l1", "macs=0.5")
        assert again.metadata["ranking"] == result.report.as_dict()["ranking"] == "isomorphic"


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
def test_results_can_be_copied_and_given_to_other_processes(copied):
    result = hfp.prune(network(), IMAGES, hfp.Budget(ratio=0.5))
    found = copied(result)
    assert found.index_map == result.index_map and found.report == result.report
    assert torch.equal(found.model.eval()(IMAGES), result.model.eval()(IMAGES))
    plan = Plan({"conv1": 4, "conv2": 8}, {"conv1": (0, 3)})
    assert copied(plan) == plan


def test_the_report_names_every_layer():
    model = network()
    report = hfp.prune(model, IMAGES, hfp.Budget(macs=0.9)).report
    with_parameters = [name for name, m in model.named_modules() if any(True for _ in m.parameters(recurse=False))]
    assert [layer.name for layer in report.layers] == with_parameters
    assert {layer.reason for layer in report.layers if layer.before == layer.after} <= {
        "it is an output of the model", "the budget is met without it",
    }  # fmt: skip
    assert all(layer.reason is None for layer in report.layers if layer.after < layer.before)
    assert report.as_dict()["layers"][0]["name"] == with_parameters[0]
    assert layer_table(report.layers).row_count == len(folded(report.layers)) < len(report.layers)
    assert "left alone: classifier: it is an output of the model" in left_alone_lines(report.layers)


class Tangled(nn.Module):
    """Every channel meets a look-up."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = nn.Linear(4, 6), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.a(x).topk(3).values)


class Observed(nn.Module):
    """Keeps a tensor without values."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(1, device="meta"))


class Settled(nn.Sequential):
    """Saves settings beside its tensors."""

    def get_extra_state(self) -> dict[str, int]:
        return {"version": 1}


def with_nan(name: str) -> nn.Module:
    model = network()
    model.state_dict()[name].view(-1)[0] = float("nan")
    return model


def renamed() -> nn.Module:
    """Make a model whose state has other names than its parameters."""
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 2, 3))
    model._register_state_dict_hook(lambda _, state, *__: {f"net.{name}": tensor for name, tensor in state.items()})
    return model


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "resnet18"}, "expected a module and a Budget, got str and Budget"),
        ({"budget": 0.5}, "expected a module and a Budget, got ResNet and float"),
        ({"model": hfp.create_model("resnet8", in_channels=1).to("meta")}, "on the meta device"),
        ({"steps": 0}, "steps is a whole number, at least 1, not 0"),
        ({"importance": 3}, "a criterion's name or a callable, not int"),
        (
            {"importance": hfp.importance.GroupFisherImportance},
            r"importance is the class GroupFisherImportance; give an object of it, such as GroupFisherImportance\(\)",
        ),
        ({"importance": "variation"}, "what a server knows from rounds of training"),
        ({"importance": "taylor"}, "needs data"),
        (
            {"importance": lambda group: torch.zeros(1)},
            r"one score for each of the \d+ channels of .*; it gave shape \[1\]",
        ),
        ({"importance": lambda group: None}, "it gave NoneType"),
        ({"importance": lambda group: torch.full((len(group[0].idxs),), torch.nan)}, "are not all finite"),
        ({"importance": lambda group: torch.ones(len(group[0].idxs)) * 1j}, "are complex numbers, which have no order"),
        ({"ranking": "up"}, "ranking is one of layer, global, isomorphic, measured"),
        ({"data": 3}, "data is a list or loader of batches, not int"),
        ({"data": TensorDataset(IMAGES)}, "TensorDataset is a data set of single samples: give a DataLoader of it"),
        ({"data": {"images": IMAGES}}, "data is a list or loader of batches, not dict"),
        ({"data": IMAGES}, r"found one batch alone: give it as data=\[batch\]"),
        ({"data": (IMAGES, torch.zeros(len(IMAGES)))}, r"found one batch alone: give it as data=\[batch\]"),
        ({"budget": hfp.Budget(macs=0.0001)}, "can't go down to 0.0001 of the full model's"),
        ({"ignored_layers": None}, "ignored_layers are modules of the model or their names, not NoneType"),
        ({"ignored_layers": [0]}, "an ignored layer is a module of the model or its name, not 0"),
        ({"ignored_layers": nn.Linear(2, 2)}, "is a Linear that is not in the model; give its name, or the one of"),
        ({"prune_heads": "no"}, "prune_heads is True or False, not 'no'"),
        ({"part": nn.Linear(1, 1)}, "part is the name of a module, not Linear"),
        ({"min_channels": 99}, "1 is the least that is reachable here with round_to=1 and min_channels=99"),
        ({"round_to": 10**30}, "1 is the least that is reachable here with round_to=10{30} and min_"),
        ({"model": nn.Sequential(nn.LazyConv2d(4, 3), nn.Conv2d(4, 2, 3))}, "0.weight has no shape before"),
        ({"model": nn.Sequential(nn.ReLU(), Observed())}, "1.seen is on the meta device"),
        ({"model": with_nan("classifier.bias")}, "classifier.bias holds values that are NaN"),
        ({"model": with_nan("stem.1.running_var")}, "stem.1.running_var holds values that are NaN"),
        ({"model": Settled()}, "the model's state holds _extra_state, which is a dict, and pruning cuts tensors"),
        ({"model": renamed()}, "the model's state does not hold the parameter 0.weight under its name"),
    ],
)
def test_wrong_requests_are_refused(change, message):
    request = {"model": network(), "budget": hfp.Budget(macs=0.5), **change}
    model, budget = request.pop("model"), request.pop("budget")
    with pytest.raises(InputError, match=message):
        hfp.prune(model, IMAGES, budget, **request)


def test_models_that_can_t_be_pruned_say_why():
    with pytest.raises(MapError, match="nothing can be removed from this model: .*largest of this dimension"):
        hfp.prune(Tangled(), torch.randn(2, 4), hfp.Budget(ratio=0.5))


def test_inputs_that_the_model_does_not_take_are_refused():
    with pytest.raises(InputError, match="does not run on the example inputs"):
        hfp.prune(network(), torch.randn(2, 2, 16, 16), hfp.Budget(ratio=0.5))


def test_inputs_that_hold_no_numbers_are_named():
    with pytest.raises(MapError, match="the full model's are NaN there; give other example inputs"):
        hfp.prune(network(), IMAGES * torch.nan, hfp.Budget(ratio=0.5))


@pytest.mark.parametrize("budget", [hfp.Budget(macs=0.5), hfp.Budget(params=0.5, macs=0.5)])
def test_a_cost_that_the_model_does_not_have_can_t_be_limited(budget):
    with pytest.raises(InputError, match="macs can't be limited: the model has 0 macs on the example inputs"):
        hfp.prune(network(), IMAGES[:0], budget)


def test_numbers_of_numpy_are_numbers():
    budget = hfp.Budget(macs=np.float32(0.5), tolerance=np.float32(0.5))
    assert type(budget.macs) is float and budget == hfp.Budget(macs=0.5, tolerance=0.5)
    options = {"round_to": np.int64(2), "min_channels": np.int64(2), "steps": np.int64(2)}
    found = hfp.prune(network(), IMAGES, budget, **options)
    assert found.index_map == hfp.prune(network(), IMAGES, budget, round_to=2, min_channels=2, steps=2).index_map
    rules = RankingRules(round_to=np.uint8(255), min_channels=np.uint8(255))  # one more than that is 0 for NumPy
    assert (type(rules.round_to), type(rules.min_channels)) == (int, int)
    with pytest.raises(InputError, match="a budget's params is a number, not 1000"):
        hfp.Budget(params=10**400)


class TwoNames(nn.Module):
    """One module has two names, of which the model's code uses the second one."""

    def __init__(self) -> None:
        super().__init__()
        self.first = self.second = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6))
        self.last = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.second(x))


def test_a_module_is_known_by_all_its_names():
    model, inputs = TwoNames(), torch.randn(2, 4)
    left = hfp.prune(model, inputs, hfp.Budget(ratio=0.5), ignored_layers="second.0").model
    assert (left.first[0].out_features, left.last.in_features) == (8, 3)
    assert Coupling.trace(model, inputs, "second.0").names == ("first.2",)
    left = hfp.prune(model, inputs, hfp.Budget(ratio=0.5), part="second").model
    assert (left.first[0].out_features, left.last.in_features) == (4, 6)


def test_a_parameter_without_dimensions_is_reported_and_kept():
    class Tempered(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Linear(8, 16), nn.Linear(16, 3)
            self.temperature = nn.Parameter(torch.tensor(2.0))

        def forward(self, x):
            return self.head(self.body(x).relu()) * self.temperature

    report = hfp.prune(Tempered(), torch.randn(2, 8), hfp.Budget(macs=0.5)).report
    before, after = report.costs["macs"]
    assert after <= 0.5 * before
    own = next(layer for layer in report.layers if layer.name == "(model)")
    assert (own.before, own.after, own.parameters, own.reason) == (1, 1, (1, 1), "it is a single number")


def test_a_layer_with_one_output_is_left_alone_for_that_reason():
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))
    report = hfp.prune(model, torch.randn(4, 8), hfp.Budget(macs=0.5)).report
    assert [layer.reason for layer in report.layers] == [None, "it has a single channel"]


def test_one_repaired_layer_is_no_plural():
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3))
    result = hfp.prune(model, torch.randn(4, 8), hfp.Budget(macs=0.5), data=[(torch.randn(64, 8), torch.zeros(64))])
    assert "on 64 samples: 1 layer, " in repr(result)
