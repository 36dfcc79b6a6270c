import json

import pytest

from hfp.errors import InputError
from hfp.federation.experiment import RANKS, Experiment


def test_default_experiment_is_the_papers_rank_1_on_digits():
    experiment = Experiment()
    assert experiment.method == "ca-hfp"
    assert experiment.ratios == (0.25,) * 5 + (0.5,) * 5


@pytest.mark.parametrize(
    ("settings", "needed"),
    [
        ({"clients": 2, "robust": "median"}, 3),
        ({"clients": 4, "robust": "trimmed-mean:2"}, 5),
        ({"clients": 10, "participation": 0.2, "robust": "norm-clip,median"}, 3),
    ],
)
def test_a_robust_rule_that_no_round_has_the_clients_for_is_refused(settings, needed):
    with pytest.raises(InputError, match=f"needs at least {needed} clients that train the same entry, .*asks [24]"):
        Experiment(**settings)
    Experiment(**{**settings, "clients": 50})
    Experiment(**{**settings, "robust": "norm-clip"})
    Experiment(**{**settings, "late": "join", "deadline": 1.0})


@pytest.mark.parametrize("rank", sorted(RANKS))
def test_ranks_split_clients_in_halves(rank):
    first, second = RANKS[rank]
    assert Experiment(rank=rank, clients=4).ratios == (first, first, second, second)
    assert Experiment(rank=rank, clients=3).ratios == (first, first, second)


def test_ratio_overrides_rank():
    assert Experiment(ratio=0.75, rank=0, clients=2).ratios == (0.75, 0.75)
    assert Experiment(ratio=(0.0, 0.9), clients=2).ratios == (0.0, 0.9)


def test_survives_json():
    experiment = Experiment(method="ca-hfp", options={"warmup": 2}, ratio=0.5)
    assert Experiment(**json.loads(json.dumps(experiment.as_dict()))) == experiment


def test_a_ratio_per_client_survives_json():
    experiment = Experiment(ratio=(0.25, 0.5), clients=2)
    assert Experiment(**json.loads(json.dumps(experiment.as_dict()))) == experiment


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "ca-hpf"}, r"unknown method 'ca-hpf'; did you mean ca-hfp or ca-hfp-paper\?"),
        ({"dataset": "digit"}, r"unknown data set 'digit'; did you mean digits\?"),
        ({"partition": "irichlet"}, "did you mean dirichlet"),
        ({"batch_norm": "locall"}, "unknown batch-norm policy 'locall'; did you mean local"),
        ({"rank": 4}, "rank must be one of 0, 1, 2, 3; found 4"),
        ({"ratio": 1.0}, r"ratio must be in \[0, 1\): the share of channels removed; found 1.0"),
        ({"ratio": -0.1}, r"ratio must be in \[0, 1\)"),
        ({"ratio": float("nan")}, r"ratio must be in \[0, 1\)"),
        ({"ratio": (0.5, 0.5)}, r"one per client \(10\); found 2"),
        ({"alpha": 0.0}, "alpha must be a finite number above 0; found 0.0"),
        ({"alpha": float("inf")}, "alpha must be a finite number"),
        ({"rounds": 2.5}, "rounds must be a whole number; found 2.5"),
        ({"alpha": "1"}, "alpha must be a number; found '1'"),
        ({"augment": 1}, "augment must be true or false; found 1"),
        ({"model": 18}, "model must be a name; found 18"),
        ({"clients": 0}, "clients must be at least 1; found 0"),
        ({"rounds": 0}, r"rounds must be in \[1, 1000000\]; found 0"),
        ({"learning_rate": 0.0}, r"learning_rate must be in \(0, 1000000\]; found 0.0"),
        ({"learning_rate": 1e300}, r"learning_rate must be in \(0, 1000000\]; found 1e\+300"),
        ({"weight_decay": 1e300}, r"weight_decay must be in \[0, 1000000\]; found 1e\+300"),
        ({"batch_size": 10**28}, r"batch_size must be in \[2, 1000000\]: batch-norm needs two images, and all of"),
        ({"momentum": 1.0}, r"momentum must be in \[0, 1\)"),
        ({"train_images": 5}, r"train_images must be at least 10 \(clients\); found 5"),
        ({"options": {"warmpu": 3}}, r"unknown option of ca-hfp 'warmpu'; did you mean warmup\?"),
        ({"options": {"warmup": 0}}, "option warmup of ca-hfp must be at least 1: a score needs a round"),
        ({"options": {"warmup": "two"}}, "option warmup of ca-hfp must be a whole number; found 'two'"),
        ({"options": {"smoothing": True}}, "option smoothing of ca-hfp must be a number; found True"),
        ({"options": {"form": "curvture"}}, "did you mean curvature"),
        ({"method": "fedavg", "options": {"warmup": 1}}, "fedavg has no options; found 'warmup'"),
        ({"options": {"name": "fedavg"}}, "unknown option of ca-hfp 'name'"),
        ({"options": {3: 1}}, "options must be a table of names and values; found {3: 1}"),
        ({"options": [1]}, r"options must be a table of names and values; found \[1\]"),
        ({"train_images": "many"}, "train_images must be a whole number; found 'many'"),
        ({"deadline": [1.0]}, r"deadline must be a number; found \[1.0\]"),
        ({"profile": 3}, "profile must be a name or a list of names; found 3"),
        ({"ratio": "half"}, "ratio must be a number or a list of numbers; found 'half'"),
        ({"budget": 3}, "budget must be a table of names and numbers; found 3"),
        ({"alpha": 10**400}, "alpha must be a finite number above 0; found 10"),
        ({"device": "meta"}, "device must be one that computes"),
        ({"head_start": 0.5}, "head_start must be a finite number of at least 1; found 0.5"),
        ({"head_start": float("inf")}, "head_start must be a finite number of at least 1; found inf"),
        ({"head_start": "long"}, "head_start must be a number; found 'long'"),
        ({"head_start_decay": 1.0}, r"head_start_decay must be in \[0, 1\); found 1.0"),
        ({"head_start_decay": -0.1}, r"head_start_decay must be in \[0, 1\); found -0.1"),
        ({"learning_rate_decay": 1.5}, r"learning_rate_decay must be in \(0, 1\]; found 1.5"),
        ({"learning_rate_schedule": "cosin"}, "unknown learning-rate schedule 'cosin'"),
        ({"clip_norm": -1}, "clip_norm must be a finite number of at least 0; found -1"),
        ({"participation": 0.0}, r"participation must be in \(0, 1\]; found 0.0"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\); found 1.0"),
        ({"deadline": 0.0}, "deadline must be a finite number above 0; found 0.0"),
        ({"late": "jion"}, r"unknown way with late replies 'jion'; did you mean join\?"),
        ({"replan": -1}, "replan must be at least 0; found -1"),
        ({"profile": "phon"}, r"unknown device profile 'phon'; did you mean phone\?"),
        ({"profile": ()}, r"profile must be a name or a list of names; found \(\)"),
        ({"budget": {"mac": 0.5}}, r"unknown limit 'mac'; did you mean macs\?"),
        ({"budget": {"macs": 0.0}}, "limit macs must be a finite number above 0; found 0.0"),
        ({"budget": {"macs": 0.5}, "ratio": 0.5}, "budget must be given alone, .* found ratio 0.5 too"),
        ({"evaluate": 0}, "evaluate must be at least 1; found 0"),
        ({"personal": -1}, "personal must be at least 0; found -1"),
        ({"robust": "mean"}, "robust rule"),
        ({"privacy": {"clip": 1.0}}, "needs its noise"),
        ({"privacy": {"noise": 1.0, "sigma": 2.0}}, "part of privacy"),
        ({"privacy": {"noise": 1.0}, "deadline": 1.0, "late": "join"}, "late must be discard"),
        ({"privacy": {"noise": 1.0}, "batch_norm": "aggregate"}, "batch_norm must be another policy with privacy"),
        ({"privacy": {"noise": 1.0}, "batch_norm": "participants"}, "batch_norm must be another policy with privacy"),
        ({"privacy": {"noise": 1.0}, "robust": "median"}, "robust must be left out in a private run"),
        ({"partition": "iid", "alpha": 0.1}, "alpha must be left out without the Dirichlet partition, .*; found 0.1"),
        ({"partition": [[0], [1]], "alpha": 0.1, "clients": 2}, "alpha must be left out"),
        ({"clients_file": "who.csv", "alpha": 0.1}, "alpha must be left out"),
        ({"late": "join"}, "late must be left out without a deadline, .*; found join"),
        ({"head_start": 1.0, "head_start_decay": 0.5}, "head_start_decay must be left out without a head start"),
        ({"pretrained": True, "weights": "x.pth"}, "weights must be left out with pretrained"),
    ],
)
def test_wrong_settings_are_refused_with_what_was_found(settings, message):
    with pytest.raises(InputError, match=message):
        Experiment(**settings)


def test_options_cannot_be_changed_afterwards():
    options = {"warmup": 2}
    experiment = Experiment(options=options)
    options["warmup"] = 9
    assert experiment.options["warmup"] == 2
    with pytest.raises(TypeError, match="does not support item assignment"):
        experiment.options["warmup"] = 5
