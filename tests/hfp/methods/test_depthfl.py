"""DepthFL and ScaleFL: how much of the model a client trains, what exits learn from, and the mean over holders."""

import dataclasses
import json
import math
from typing import ClassVar

import pytest
import torch
from federated import assigned, begin, collected, context_of, local_of, made_up, prepared, small_network
from runs import kept_run
from torch.nn import functional

from hfp import Experiment, load_pruned, load_run, load_submodel, simulate
from hfp.commands.cli import main
from hfp.costs.macs import parameters
from hfp.errors import InputError
from hfp.federation.robust import defend
from hfp.federation.robust_rules import parse_rules
from hfp.federation.setup import set_up
from hfp.methods import ClientContext, create_method
from hfp.methods.depthfl import DepthFL, MutualExits, completed
from hfp.methods.interface import registry
from hfp.methods.scalefl import FromTheLast
from hfp.models.exits import WithExits
from hfp.reconstruct import IndexMap
from hfp.results.submodels import with_its_exits

SMALL = Experiment(method="depthfl", clients=3, train_images=90, rounds=2, head_start=1.0, ratio=(0.0, 0.4, 0.8))


def ready(name, **options):
    method, model = create_method(name, **options), small_network()
    return method, *prepared(method, model, context_of(model))


@pytest.mark.parametrize(
    ("method", "ratio", "exits"),
    [("depthfl", 0.0, 3), ("depthfl", 0.4, 2), ("depthfl", 0.7, 1), ("depthfl", 0.99, 1)]
    + [("scalefl", 0.0, 3), ("scalefl", 0.6, 2), ("scalefl", 0.95, 1)],
)
def test_a_client_trains_the_exits_that_its_ratio_leaves(method, ratio, exits):
    made, model, _ = ready(method)
    assert made.exits(model, ratio) == exits


def test_a_client_is_sent_what_its_exits_need_and_nothing_else():
    method, model, context = ready("depthfl")
    state = begin(model, method, context)
    for client in context.clients:
        exits = method.exits(model, client.ratio)
        sent = assigned(method, context, state, client).tensors
        for name, tensor in state.weights.items():
            here = model.needs[name] <= exits or tensor.dim() == 0
            assert sent[name].numel() == (tensor.numel() if here else 0), name


def test_scalefl_also_leaves_out_channels():
    method, model, context = ready("scalefl")
    state = begin(model, method, context)
    for client in context.clients:
        plan = method.plan(context, state, client)
        share = method.exits(model, client.ratio) / model.exits
        for name, kept in plan.kept.items():
            assert list(kept) == list(range(len(kept)))
            assert abs(len(kept) / context.groups.sizes[name] - min(1, (1 - client.ratio) / share)) <= 0.5


@pytest.mark.parametrize("name", ["depthfl", "scalefl"])
def test_an_entry_becomes_the_mean_over_those_who_hold_it_and_else_stays(name):
    method, model, context = ready(name)
    state = begin(model, method, context)
    updates = list(made_up(context, method, state))
    after = collected(context, method, state, updates).weights
    for tensor, before in state.weights.items():
        total, held = torch.zeros(before.shape, dtype=torch.float64), torch.zeros(before.shape, dtype=torch.float64)
        for update in updates:
            place, value = update.task.index_map.tensors[tensor], update.reply.tensors[tensor]
            if value.shape == place.compact_shape:
                own = place.embed(value.double(), torch.full(before.shape, torch.nan, dtype=torch.float64))
                total += update.client.samples * own.nan_to_num()
                held += update.client.samples * ~own.isnan()
        expected = torch.where(held > 0, total / held, before.double())
        if before.is_floating_point():
            torch.testing.assert_close(after[tensor].double(), expected, rtol=1e-12, atol=1e-12)
    deepest = "network.blocks.2.first.0.weight"
    unheld = all(method.exits(model, client.ratio) < 3 for client in context.clients)
    assert torch.equal(after[deepest], state.weights[deepest]) == unheld


def test_exits_teach_each_other_as_the_paper_says():
    _, model, _ = ready("depthfl")
    inputs, labels = torch.randn(5, 1, 8, 8, dtype=torch.float64), torch.arange(5)
    model.eval()
    found = MutualExits(torch.tensor(0.3), 3).loss(model, inputs, labels)
    logits = model.logits(inputs)
    expected = 0.0
    for one in range(3):
        expected += functional.cross_entropy(logits[one], labels)
        for other in {0, 1, 2} - {one}:
            taught, mine = logits[other].detach().softmax(1), logits[one].softmax(1)
            expected += 0.3 / 2 * (taught * (taught / mine).log()).sum(1).mean()
    torch.testing.assert_close(found, expected)


def test_scalefls_exits_learn_from_the_last_and_count_by_their_numbers():
    _, model, _ = ready("scalefl")
    inputs, labels = torch.randn(5, 1, 8, 8, dtype=torch.float64), torch.arange(5)
    model.eval()
    found = FromTheLast(torch.tensor(0.2, dtype=torch.float64), 3.0, 3).loss(model, inputs, labels)
    logits = model.logits(inputs)
    teacher = (logits[-1].detach() / 3).softmax(1)
    expected = 3 * functional.cross_entropy(logits[-1], labels)
    for number, each in enumerate(logits[:-1], 1):
        divergence = (teacher * (teacher / (each / 3).softmax(1)).log()).sum(1).mean()
        expected += number * (0.8 * functional.cross_entropy(each, labels) + 0.2 * 9 * divergence)
    torch.testing.assert_close(found, expected / 6)


def test_distillation_grows_over_the_ramp_and_begins_after_the_warm_up():
    depth, _, context = ready("depthfl", ramp=10)
    weights = [depth.weights_in(context, round)["distillation"] for round in (0, 5, 10, 99)]
    assert weights == pytest.approx([math.exp(-5), math.exp(-1.25), 1, 1])
    scale = create_method("scalefl", distillation=0.4, warmup=0.5)
    assert [scale.weights_in(context, round)["distillation"] for round in (14, 15)] == [0, 0.4]


def test_a_reply_counts_what_was_trained_alone():
    method, model, context = ready("depthfl")
    state = begin(model, method, context)
    replies = [
        method.train(local_of(model, context, client), assigned(method, context, state, client))
        for client in context.clients
    ]
    assert [method.exits(model, client.ratio) for client in context.clients] == [2, 2, 1]
    assert replies[0].parameters > replies[2].parameters
    assert replies[0].forward_macs > replies[2].forward_macs
    assert replies[2].parameters == sum(
        parameter.numel() for name, parameter in model.named_parameters() if model.needs[name] == 1
    )


def test_a_reply_with_values_that_were_not_sent_is_refused():
    method, model, context = ready("depthfl")
    state = begin(model, method, context)
    *_, update = made_up(context, method, state)
    method.check_reply(context, state, update)
    update.reply.tensors.update(completed(update.task.index_map, update.reply.tensors))
    with pytest.raises(InputError, match=r"must be \[0\]; found"):
        method.check_reply(context, state, update)


@pytest.mark.parametrize("name", ["depthfl", "scalefl"])
def test_a_run_is_loaded_with_its_exits_and_a_clients_own_model(name, tmp_path):
    experiment = dataclasses.replace(SMALL, method=name)
    run = simulate(experiment, resume=tmp_path / "run")
    saved = load_run(tmp_path / "run")
    assert isinstance(saved.model, WithExits)
    for tensor, value in run.global_state.items():
        assert torch.equal(saved.model.state_dict()[tensor], value)
    assert run.history[-1].accuracy == pytest.approx(saved.accuracy, abs=1e-3)


def test_the_exits_of_a_run_are_drawn_from_its_seed():
    states = [set_up(SMALL).initial, set_up(SMALL).initial]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    plain = set_up(dataclasses.replace(SMALL, method="fedavg")).initial
    assert all(torch.equal(states[0][f"network.{name}"], tensor) for name, tensor in plain.items())


@pytest.mark.parametrize("guard", [{"robust": "median"}, {"privacy": {"noise": 0.01}}], ids=["robust", "private"])
def test_guards_see_the_blocks_that_only_some_clients_train(guard):
    """The deepest client's block moves, although two of three clients send nothing of it."""
    experiment = dataclasses.replace(SMALL, clients=5, ratio=(0.0, 0.0, 0.0, 0.4, 0.8), rounds=1, **guard)
    before, after = set_up(experiment).initial, simulate(experiment).global_state
    for name in ("network.stem.0.weight", "network.blocks.2.first.0.weight"):
        assert not torch.equal(before[name], after[name])


def test_a_median_is_taken_over_those_who_hold_a_block():
    method, model, context = ready("depthfl")
    clients = tuple(dataclasses.replace(context.clients[0], index=number, ratio=0.0) for number in range(3))
    few = dataclasses.replace(context.clients[0], index=3, ratio=0.8)
    context = dataclasses.replace(context, clients=(*clients, few))
    state = begin(model, method, context)
    updates = list(made_up(context, method, state))
    deepest = "network.blocks.2.first.0.weight"
    defended = defend(parse_rules("median"), state.weights, updates).updates
    expected = torch.stack([update.reply.tensors[deepest] for update in updates[:3]]).median(0).values
    mean = collected(context, method, state, defended).weights[deepest]
    torch.testing.assert_close(mean, expected)


def test_a_model_that_a_client_trained_runs_all_its_exits_again(monkeypatch):
    method, model, context = ready("depthfl")
    state, made = begin(model, method, context), []
    build = ClientContext.build
    monkeypatch.setattr(ClientContext, "build", lambda local, task: made.append(build(local, task)) or made[-1])
    for client in context.clients:
        method.train(local_of(model, context, client), assigned(method, context, state, client))
    assert [model.depth for model in made] == [3, 3, 3]


@pytest.mark.parametrize(("method", "ratio", "exits", "save"), [("depthfl", 0.6, 1, True), ("scalefl", 0.6, 2, False)])
def test_a_clients_own_model_has_the_exits_that_it_trained(method, ratio, exits, save, tmp_path):
    settings = {"train_images": 60, "rounds": 1, "head_start": 1.0, "batch_norm": "aggregate"}
    run = kept_run(tmp_path / "run", save_clients=save, method=method, ratio=ratio, **settings)
    saved = load_run(tmp_path / "run")
    mine = saved.submodel(1)
    assert mine.trained == save
    assert parameters(mine.model) == run.history[-1].clients[1].parameters
    images = torch.randint(17, (5, 1, 8, 8), dtype=torch.uint8)
    logits = mine.model.logits(mine.input.prepare(images).samples)
    assert len(logits) == exits
    expected = torch.stack(logits).mean(0).softmax(1)
    found = torch.tensor([prediction.probabilities for prediction in mine.predict(images)])
    torch.testing.assert_close(found, expected)
    file = tmp_path / "mine.safetensors"
    assert main(["extract", str(tmp_path / "run"), "--client", "1", "--out", str(file)]) == 0
    again = load_submodel(file)
    assert parameters(again.model) == parameters(mine.model)
    assert [p.probabilities for p in again.predict(images)] == [p.probabilities for p in mine.predict(images)]
    plain = load_pruned(file).model  # the file's own form, which has zeros for the other exits
    assert torch.equal(plain(mine.input.prepare(images).samples), torch.stack(logits).mean(0))
    again.reestimate(images)


def test_a_file_of_a_client_with_few_exits_is_shown_without_the_others(tmp_path, capsys):
    run = kept_run(tmp_path / "run", method="depthfl", ratio=0.6, rounds=1, train_images=60, batch_norm="aggregate")
    file = tmp_path / "mine.safetensors"
    assert main(["extract", str(tmp_path / "run"), "--client", "1", "--out", str(file)]) == 0
    capsys.readouterr()
    assert main(["inspect", str(file), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    trained = run.history[-1].clients[1]
    assert shown["costs"]["params"][1] == sum(layer["parameters"][1] for layer in shown["layers"]) == trained.parameters
    assert shown["costs"]["macs"][1] == trained.forward_macs
    assert {layer["name"]: layer["after"] for layer in shown["layers"]}["network.blocks.2.first.0"] == 0


def test_a_plan_whose_ratio_is_not_known_makes_no_model(tmp_path):
    kept_run(tmp_path / "run", method="depthfl", ratio=0.6, rounds=1, train_images=60, batch_norm="aggregate")
    (tmp_path / "run" / "metrics.jsonl").unlink()
    with pytest.raises(InputError, match="metrics.jsonl has no ratio of client 1 in round 1"):
        load_run(tmp_path / "run").submodel(1)


def test_an_export_follows_the_network_to_its_end_and_has_the_exits_that_run(monkeypatch):
    _, model, _ = ready("depthfl")
    model.eval().depth = 1
    images, ends = torch.rand(2, 1, 8, 8, dtype=torch.float64), []
    model.network.register_forward_hook(lambda *_: ends.append(1))
    (expected,) = model.logits(images)
    assert not ends
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    (found,) = model.logits(images)
    assert torch.equal(found, expected)
    assert ends


@dataclasses.dataclass(frozen=True)
class AtMost(DepthFL):
    name: ClassVar[str] = "at-most"
    most: int = 3

    def exits(self, model, ratio):
        return min(self.most, super().exits(model, ratio))


def test_a_models_exits_go_by_the_options_of_its_run(tmp_path, monkeypatch):
    monkeypatch.setitem(registry._METHODS, "at-most", AtMost)
    settings = {"ratio": 0.0, "rounds": 1, "train_images": 60, "batch_norm": "aggregate", "options": {"most": 1}}
    kept_run(tmp_path / "run", method="at-most", **settings)
    assert load_run(tmp_path / "run").submodel(1).model.depth == 1


def test_a_model_without_exits_is_saved_as_it_is_trained(monkeypatch):
    model, method = small_network(), create_method("heterofl")
    monkeypatch.setattr(type(method), "trained_model", lambda *_: pytest.fail("this is for costs alone"))
    index_map = IndexMap.identity(model)
    assert with_its_exits(method, 0.5, model, index_map) == (model, index_map)
