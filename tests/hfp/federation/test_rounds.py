import dataclasses

import pytest
import torch

from hfp import Experiment, InputError, create_model, simulate
from hfp.costs.payload import pack
from hfp.federation.rounds import rounds
from hfp.federation.setup import set_up
from hfp.methods import create_method
from hfp.results.beginning import first_lines

SMALL = Experiment(train_images=200, clients=4, rounds=3, options={"warmup": 1})


@pytest.fixture(scope="module")
def run():
    return simulate(SMALL)


def test_a_run_has_a_record_for_every_round_and_client(run):
    assert [record.round for record in run.history] == [1, 2, 3]
    assert [record.phase for record in run.history] == ["random", "score", "score"]
    for record in run.history:
        assert [client.client for client in record.clients] == [0, 1, 2, 3]
        assert sum(client.samples for client in record.clients) == 200
        assert 0 <= record.accuracy <= 100


def test_the_memory_that_the_machine_gave_is_in_the_record(run):
    from hfp.results.report import run_document

    peaks = [record.process_peak_bytes for record in run.history]
    assert min(peaks) > 50e6, "torch alone takes more"
    assert peaks == sorted(peaks)
    document = run_document(run, None)
    assert document["process_peak_bytes"] == document["history"][-1]["process_peak_bytes"] == peaks[-1]
    assert document["device_peak_bytes"] is None


def test_the_same_experiment_gives_the_same_run(run):
    again = simulate(SMALL)
    assert [r.accuracy for r in again.history] == [r.accuracy for r in run.history]
    for name, tensor in run.global_state.items():
        assert torch.equal(again.global_state[name], tensor)


def test_another_seed_gives_another_run(run):
    other = simulate(dataclasses.replace(SMALL, seed=1, rounds=1))
    assert other.history[0].loss != run.history[0].loss


def test_torchs_global_generator_is_left_alone():
    before = torch.get_rng_state()
    simulate(dataclasses.replace(SMALL, rounds=1))
    assert torch.equal(torch.get_rng_state(), before)


def test_methods_share_partition_and_initial_weights():
    ours, reference = set_up(SMALL), set_up(dataclasses.replace(SMALL, method="fedavg", options={}))
    for mine, theirs in zip(ours.shards, reference.shards, strict=True):
        assert torch.equal(mine.images, theirs.images)
    for name, tensor in ours.initial.items():
        assert torch.equal(tensor, reference.initial[name])


def test_runs_share_the_groups_of_a_model_only_where_they_make_the_same_one():
    groups = set_up(SMALL).context.groups
    assert set_up(dataclasses.replace(SMALL, method="fedavg", options={})).context.groups is groups
    given = create_model(SMALL.model, in_channels=1)
    for change in ({"seed": SMALL.seed + 1}, {"model": given}, {"method": "depthfl"}):
        assert set_up(dataclasses.replace(SMALL, options={}, **change)).context.groups is not groups


def test_costs_are_those_of_the_submodels(run):
    federation = set_up(SMALL)
    record = run.history[0]
    full = len(pack(federation.initial))
    for client in record.clients:
        kept = client.parameters
        buffers = client.bytes_up - 4 * kept
        assert client.bytes_down == client.bytes_up < full
        assert 0 < buffers < 0.2 * client.bytes_up
        assert client.training_macs == 3 * client.forward_macs * 10 * client.samples  # of the first round
        assert client.parameters < run.full_cost.parameters * (1 - client.ratio) ** 2 * 1.2
    assert run.bytes_up == sum(r.bytes_up for r in run.history) + record.statistics[1]


def test_fedavg_costs_what_the_table_calls_fedavgs_cost():
    run = simulate(dataclasses.replace(SMALL, method="fedavg", options={}, rounds=2, batch_size=200))
    down, up = run.history[-1].statistics
    assert (run.bytes_down - down, run.bytes_up - up) == (run.full_cost.bytes_down, run.full_cost.bytes_up)
    assert run.training_macs == run.full_cost.training_macs
    assert run.device_seconds == pytest.approx(run.full_cost.seconds)
    assert run.peak_bytes == run.full_cost.peak_bytes  # no client has as many images as a batch
    assert run.history[0].training_macs > run.history[1].training_macs  # the first round is longer


def test_the_ratio_of_a_method_that_has_its_own_is_what_it_removed():
    quick = {"options": {}, "rounds": 1, "batch_norm": "aggregate", "ratio": 0.5}
    for method, options in (
        ("fedavg", {}),
        ("fedmp-bandit", {}),
        ("fedmp", {"bandit": True}),
        ("fedprox", {"partial": False}),
    ):
        federation = set_up(dataclasses.replace(SMALL, method=method, **{**quick, "options": options}))
        assert not any("remove" in line for line in first_lines(federation, 1))
        full = sum(parameter.numel() for parameter in federation.model.parameters())
        for client in next(iter(rounds(federation))).record.clients:
            assert client.ratio != 0.5
            assert (client.ratio == 0) == (client.parameters == full) == (method in ("fedavg", "fedprox"))


@pytest.mark.parametrize(
    ("method", "options", "removed"),
    [
        ("ca-hfp", {}, "25%, 50% of their channels"),
        ("fedprox", {}, "25%, 50% of their local steps"),
        ("prunefl", {}, "at least 59% of the weights"),
        ("prunefl", {"density": 0.3}, "at least 70% of the weights"),
        ("fedrts", {}, "59% of the weights"),
        ("fiarse", {}, "25%, 50% of their channels"),
        ("fiarse", {"structured": False}, "44%, 75% of the weights"),
        ("depthfl", {}, "1 of the 3 exits"),
        ("scalefl", {}, "0 of the 3 exits and 25%, 50% of their channels"),
    ],
)
def test_the_first_lines_say_what_a_methods_clients_remove(method, options, removed):
    small = {"train_images": 40, "clients": 2, "ratio": None, "rank": 1}
    federation = set_up(dataclasses.replace(SMALL, method=method, options=options, **small))
    assert any(line.endswith(f"; they remove {removed}") for line in first_lines(federation, 1))


@pytest.mark.parametrize("method", ["prunefl", "fedrts"])
def test_a_mask_of_a_stated_density_does_not_go_by_ratios(method):
    assert create_method(method).uses_ratios
    assert not create_method(method, density=0.3).uses_ratios


def test_reestimated_statistics_are_the_global_models_own():
    federation = set_up(SMALL)
    state = next(iter(rounds(federation))).state
    model = federation.model
    model.load_state_dict(dict(state.weights))
    observer_state = []
    model.stem[0].register_forward_hook(lambda module, inputs, output: observer_state.append(output.detach()))
    with torch.no_grad():
        for shard in federation.shards:
            model(federation.dataset.normalise(shard.images))
    together = torch.cat(observer_state).transpose(0, 1).flatten(1)
    torch.testing.assert_close(state.weights["stem.1.running_mean"], together.mean(1), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(state.weights["stem.1.running_var"], together.var(1), rtol=1e-2, atol=1e-3)


def test_aggregating_statistics_moves_nothing_more():
    run = simulate(dataclasses.replace(SMALL, batch_norm="aggregate", rounds=1))
    assert run.history[0].statistics == (0, 0)
    assert run.bytes_up == run.history[0].bytes_up


def test_a_ratio_that_empties_a_layer_is_refused_before_any_work():
    with pytest.raises(InputError, match=r"removing 0.98 of the 16 channels of .* leaves none"):
        set_up(dataclasses.replace(SMALL, ratio=0.98))


def test_more_clients_than_samples_are_refused():
    with pytest.raises(InputError, match="need 3000 samples, found 1438"):
        set_up(Experiment(clients=1500))


def test_an_unknown_model_or_device_is_refused():
    with pytest.raises(InputError, match="unknown model 'resnet9'; did you mean"):
        set_up(Experiment(model="resnet9"))
    with pytest.raises(InputError, match="there is no device 'nonsense'"):
        set_up(Experiment(device="nonsense"))
