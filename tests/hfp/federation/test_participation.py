"""Who takes part, who drops out, who is late; and what the engine makes of it."""

import dataclasses
import json

import pytest
import torch
from federated import assigned, begin, collected, context_of, dense, held, shaken, small_network, update_of

from hfp import Experiment, InputError, simulate
from hfp.costs.devices import Seconds
from hfp.costs.payload import pack
from hfp.federation.exchange import Exchange
from hfp.federation.experiment import asked_clients
from hfp.federation.participation import Cohort
from hfp.federation.rounds import Course
from hfp.federation.setup import set_up
from hfp.methods import Client, create_method
from hfp.methods.blocks.selection import keep_random
from hfp.methods.dapperfl import KEPT, kept_bits
from hfp.results.checkpoint import load_checkpoint
from hfp.results.model_files import ModelFiles

SMALL = Experiment(train_images=120, clients=4, rounds=3, method="fedavg", head_start=1.0)
FOUR = tuple(Client(index, 10, 0.5) for index in range(4))


def experiment(**changes):
    return dataclasses.replace(SMALL, **changes)


@pytest.mark.parametrize(("share", "clients", "asked"), [(1.0, 7, 7), (0.5, 5, 3), (0.24, 10, 2), (0.01, 10, 1)])
def test_a_share_of_the_clients_is_asked_and_at_least_one(share, clients, asked):
    assert asked_clients(share, clients) == asked


def test_participants_change_with_the_round_and_not_with_the_method():
    cohort = Cohort(experiment(participation=0.5), FOUR)
    drawn = [tuple(client.index for client in cohort.asked(round)) for round in range(60)]
    assert {len(indices) for indices in drawn} == {2}
    assert len(set(drawn)) == 6
    other = Cohort(experiment(participation=0.5, method="heterofl"), FOUR)
    assert drawn == [tuple(client.index for client in other.asked(round)) for round in range(60)]


def test_clients_drop_out_as_often_as_they_should():
    cohort = Cohort(experiment(dropout=0.3), FOUR)
    dropped = sum(cohort.drops_out(round, client) for round in range(100) for client in FOUR)
    assert 80 < dropped < 160
    assert not any(Cohort(experiment(), FOUR).drops_out(round, FOUR[0]) for round in range(50))


def late_update(client, seconds):
    update = update_of(client, None, {})
    return dataclasses.replace(update, seconds=Seconds(0.0, seconds, 0.0))


def test_late_replies_join_when_they_arrive_and_their_client_is_busy_until_then():
    cohort = Cohort(experiment(deadline=2.0, late="join"), FOUR)
    prompt, slow, slowest = (late_update(c, s) for c, s in zip(FOUR, (2.0, 2.5, 6.5), strict=False))
    assert [cohort.admit(5, update) for update in (prompt, slow, slowest)] == [True, False, False]
    free = [[client.index for client in cohort.asked(round)] for round in (6, 7, 8, 9)]
    assert free == [[0, 3], [0, 1, 3], [0, 1, 3], [0, 1, 2, 3]]
    assert [cohort.arrivals(round) for round in (6, 7, 8)] == [[slow], [], [slowest]]
    assert cohort.arrivals(6) == []


def test_discarded_replies_never_arrive_and_their_client_is_free():
    cohort = Cohort(experiment(deadline=2.0), FOUR)
    assert not cohort.admit(0, late_update(FOUR[0], 9.0))
    assert len(cohort.asked(1)) == 4
    assert all(cohort.arrivals(round) == [] for round in range(9))


def test_dropped_clients_cost_a_download_and_nothing_else():
    run = simulate(experiment(dropout=0.5))
    records = [client for record in run.history for client in record.clients]
    dropped = [client for client in records if client.status == "dropped"]
    assert 0 < len(dropped) < len(records)
    full = len(pack(set_up(SMALL).initial))
    for client in dropped:
        assert (client.bytes_down, client.bytes_up, client.training_macs, client.steps) == (full, 0, 0, 0)
    assert run.history[0].bytes_up == full * len(run.history[0].trained)


def test_a_round_without_replies_leaves_the_model_as_it_was():
    settings = {"deadline": 1e-9, "batch_norm": "aggregate", "rounds": 1}
    for method in ("fedavg", "ca-hfp", "dapperfl", "heterofl"):
        silent = experiment(method=method, **settings)
        run = simulate(silent)
        for name, tensor in set_up(silent).initial.items():
            assert torch.equal(run.global_state[name], tensor)
        assert {client.status for client in run.history[0].clients} == {"late"}
        assert run.history[0].device_seconds == 1e-9


def test_a_round_with_too_few_replies_stops_the_run_with_the_state_before_it(tmp_path):
    def replies(seed):
        cohort = Cohort(experiment(dropout=0.5, seed=seed), FOUR)
        return [sum(not cohort.drops_out(round, client) for client in FOUR) for round in range(3)]

    seed = next(seed for seed in range(100) if replies(seed)[:2] == [3, 1])
    few = experiment(dropout=0.5, seed=seed, least_replies=2, head_start=1.0)
    for _ in range(2):  # the resumed run does the round again, and comes to the same
        with pytest.raises(
            InputError, match=r"round 2 had 1 of the 2 usable .* \(least_replies\): 3 dropped, 1 in time"
        ):
            simulate(few, resume=tmp_path)
        assert [record.count("in time") for record in load_checkpoint(tmp_path).history] == [3]
    assert len(simulate(dataclasses.replace(few, least_replies=0)).history) == 3
    with pytest.raises(InputError, match="least_replies must be at most 4, which is how many clients a round asks"):
        experiment(least_replies=5)


def test_a_round_lasts_until_its_slowest_client_in_time():
    mixed = experiment(profile=("laptop", "board"), rounds=1)
    record = simulate(mixed).history[0]
    assert [client.device for client in record.clients] == ["laptop", "board", "laptop", "board"]
    totals = [
        client.bytes_down / device.down + client.training_macs / device.macs + client.bytes_up / device.up
        for client, device in zip(record.clients, mixed.devices, strict=True)
    ]
    assert record.device_seconds == pytest.approx(max(totals))
    assert record.device_seconds == pytest.approx(max(client.device_seconds for client in record.clients))


def test_late_changes_join_the_next_round():
    settings = {"profile": ("laptop", "board"), "late": "join", "rounds": 2, "batch_norm": "aggregate"}
    slow = simulate(experiment(**{**settings, "late": "discard"})).history[0]
    deadline = (slow.clients[0].device_seconds + slow.clients[1].device_seconds) / 2
    run = simulate(experiment(**settings, deadline=deadline))
    first, second = run.history
    assert [client.status for client in first.clients] == ["in time", "late", "in time", "late"]
    assert first.device_seconds == deadline
    assert [client.client for client in second.clients] == [0, 2]
    lost = simulate(experiment(**{**settings, "late": "discard"}, deadline=deadline))
    assert [client.client for client in lost.history[1].clients] == [0, 1, 2, 3]
    assert lost.history[0].accuracy == first.accuracy
    assert any(not torch.equal(lost.global_state[name], tensor) for name, tensor in run.global_state.items())


@pytest.fixture(scope="module")
def context():
    model = small_network()
    return model, context_of(model)


@pytest.mark.parametrize("name", ["ca-hfp-paper", "heterofl", "fedmp"])
def test_a_late_change_is_made_to_the_weights_of_today(context, name):
    model, context = context
    method, random = create_method(name), torch.Generator().manual_seed(1)
    then, client = begin(model, method, context), context.clients[1]
    task = assigned(method, context, then, client)
    update = update_of(client, task, shaken(dict(task.tensors), random))
    now = dataclasses.replace(then, round=3, weights=shaken(dict(then.weights), random))
    rebased = method.rebase(context, now, update)
    after = collected(context, method, now, [rebased])
    for tensor in context.parameters:
        change = dense(update, tensor, then.weights[tensor]) - then.weights[tensor]
        torch.testing.assert_close(after.weights[tensor], now.weights[tensor] + change, rtol=1e-12, atol=1e-12)
        assert torch.equal(after.weights[tensor][~held(update, tensor)], now.weights[tensor][~held(update, tensor)])


def test_a_late_change_leaves_no_variance_below_zero(context):
    model, context = context
    method = create_method("ca-hfp-paper")
    then, client = begin(model, method, context), context.clients[1]
    task = assigned(method, context, then, client)
    less = {name: tensor * 0.1 if name.endswith("running_var") else tensor for name, tensor in task.tensors.items()}
    small = {name: tensor * 0.2 if name.endswith("running_var") else tensor for name, tensor in then.weights.items()}
    now = dataclasses.replace(then, round=3, weights=small)
    rebased = method.rebase(context, now, update_of(client, task, less))
    found = [tensor for name, tensor in rebased.reply.tensors.items() if name.endswith("running_var")]
    assert all(torch.equal(tensor, torch.zeros_like(tensor)) for tensor in found)


def test_a_late_client_that_pruned_itself_is_rebased_on_what_it_kept(context):
    model, context = context
    method, random = create_method("dapperfl"), torch.Generator().manual_seed(1)
    then, client = begin(model, method, context), context.clients[1]
    plan = keep_random(context.groups, 0.5, random)
    index_map = context.groups.index_map(plan)
    trained = shaken(index_map.restrict(then.weights), random)
    update = update_of(client, assigned(method, context, then, client), {**trained, KEPT: kept_bits(plan)})
    now = dataclasses.replace(then, weights=shaken(dict(then.weights), random))
    rebased = method.rebase(context, now, update)
    after = collected(context, method, now, [rebased])
    part, today = method.trained_part(context, now, rebased), index_map.restrict(now.weights)
    assert all(torch.equal(part.before[name], tensor) for name, tensor in today.items())
    full = index_map.embed(trained, into=then.weights)
    for tensor in context.parameters:
        expected = now.weights[tensor] + full[tensor] - then.weights[tensor]
        torch.testing.assert_close(after.weights[tensor], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("replan", "distinct"), [(1, 4), (2, 2), (0, 1)])
def test_a_plan_stays_for_as_many_rounds_as_asked(replan, distinct):
    federation = set_up(experiment(method="fedrolex", replan=replan, ratio=0.5))
    exchange, state = Exchange(federation), federation.method.start(federation.context, federation.initial)
    client = federation.context.clients[0]
    kept = {tuple(exchange._plan(dataclasses.replace(state, round=round), client).kept.items()) for round in range(4)}
    assert len(kept) == distinct


@pytest.mark.parametrize(("replan", "most"), [(1, 1), (2, 2), (0, 4)])
def test_a_run_remembers_only_plans_that_may_be_used_again_and_its_folder_has_all(replan, most, tmp_path):
    sampled = experiment(method="heterofl", clients=4, participation=0.25, replan=replan, rounds=4, evaluate=4)
    course = Course(set_up(sampled), observers=[ModelFiles(tmp_path)])
    asked = set()
    for _ in range(sampled.rounds):
        asked |= {client.client for client in course.advance().record.clients}
        assert len(course.run_state.plans) <= most
        assert max(made for made, _, _ in course.run_state.plans.values()) == course.state.round - 1 or replan != 1
    stored = json.loads((tmp_path / "plans.json").read_text())["clients"]
    assert stored.keys() == {str(client) for client in asked}
    assert len(asked) > 1


def test_a_new_phase_makes_a_new_plan():
    run = simulate(experiment(method="ca-hfp", options={"warmup": 2}, replan=0, rounds=4, ratio=0.5))
    assert [record.phase for record in run.history] == ["random", "random", "score", "score"]


def test_budgets_decide_ratios():
    settings = {"profile": ("laptop", "board"), "method": "ca-hfp"}
    by_time = set_up(experiment(**settings, budget={"seconds": 0.5}))
    ratios = [client.ratio for client in by_time.context.clients]
    assert ratios[0] < ratios[1]
    by_macs = set_up(experiment(**settings, budget={"macs": 0.25}))
    assert len({client.ratio for client in by_macs.context.clients}) == 1
    record = simulate(experiment(**settings, budget={"seconds": 0.5}, rounds=1)).history[0]
    assert all(client.device_seconds <= 0.5 for client in record.clients)


def test_a_fleet_survives_json():
    mixed = experiment(profile=("phone", "1e9:1e6:1e6"), budget={"seconds": 5.0}, late="join", deadline=3.0)
    assert Experiment(**json.loads(json.dumps(mixed.as_dict()))) == mixed


@pytest.mark.parametrize("late", ["discard", "join"])
def test_prunefl_finds_its_mask_under_a_deadline_that_others_meet(late):
    """The first client's many batches take longer than a round: its reply is taken all the same."""
    deadline = experiment(deadline=0.4, late=late, method="prunefl", options={"passes": 60, "limit": 2, "every": 2})
    run = simulate(deadline)
    assert [record.phase for record in run.history] == ["initial", "train", "adapt"]
    first = run.history[0]
    assert first.clients[0].device_seconds > 0.4
    assert first.clients[0].status == "in time"
    assert first.device_seconds == first.clients[0].device_seconds
    assert {client.status for client in run.history[1].clients} == {"in time"}
