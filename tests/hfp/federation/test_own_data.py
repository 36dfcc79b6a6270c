"""Data and models of one's own: tensors of any shape, modules and factories, and weights to start from."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import hfp
from hfp.comparison.definition import Comparison, Variant
from hfp.data import Dataset, from_tensors, load_dataset
from hfp.federation.problem import load_problem
from hfp.federation.rounds import Course
from hfp.federation.setup import set_up, set_up_own, with_data_of
from hfp.results.checkpoint import Checkpoint, load_checkpoint, save_checkpoint

QUICK = {"clients": 2, "rounds": 1, "head_start": 1.0, "method": "fedavg"}


def table_network() -> nn.Module:
    return nn.Sequential(nn.Linear(7, 8), nn.ReLU(), nn.Linear(8, 3))


def signal_network() -> nn.Module:
    layers = nn.Conv1d(2, 8, 3), nn.BatchNorm1d(8), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(8, 3)
    return nn.Sequential(*layers)


def samples(count: int, *shape: int) -> tuple[Tensor, Tensor]:
    labels = torch.arange(count) % 3
    noise = torch.randn(count, *shape, generator=torch.Generator().manual_seed(count))
    return noise + 3 * labels.view(-1, *[1] * len(shape)), labels


def dataset(*shape: int) -> Dataset:
    return from_tensors(*samples(60, *shape), *samples(30, *shape), name="mine")


@pytest.mark.parametrize(("shape", "make"), [((7,), table_network), ((2, 9), signal_network)])
def test_tensors_of_any_shape_reach_the_model_as_they_are(shape: tuple[int, ...], make) -> None:
    data = dataset(*shape)
    federation = set_up(hfp.Experiment(dataset=data, model=make, **QUICK))
    shard = federation.shards[0]
    assert torch.equal(shard.normalise(shard.images), shard.images)
    longer = {**QUICK, "method": "ca-hfp", "rounds": 3, "epochs": 5, "batch_size": 8, "partition": "iid"}
    run = hfp.simulate(hfp.Experiment(dataset=data, model=make, **longer))
    assert run.accuracy > 60
    assert run.experiment.dataset_name == "mine"


@pytest.mark.parametrize("name", ["augment", "channels_last"])
def test_what_is_for_images_is_refused_for_tables(name: str) -> None:
    with pytest.raises(hfp.InputError, match=rf"{name} is for images .* found samples \[7\]"):
        set_up(hfp.Experiment(dataset=dataset(7), model=table_network, **{name: True}, **QUICK))


def test_one_test_sample_has_no_statistics_of_its_own() -> None:
    one = from_tensors(*samples(60, 2, 9), *samples(1, 2, 9), name="mine")
    with pytest.raises(hfp.InputError, match="batch_norm must be another policy than batch with one test sample"):
        set_up(hfp.Experiment(dataset=one, model=signal_network, **{**QUICK, "batch_norm": "batch"}))


def test_tensors_are_checked_when_they_are_given() -> None:
    (x, y), (tx, ty) = samples(60, 7), samples(30, 7)
    with pytest.raises(
        hfp.InputError, match="data set tensors: the test samples must have the training samples' shape"
    ):
        from_tensors(x, y, tx[:, :3], ty)
    with pytest.raises(hfp.InputError, match=r"test split: labels must be in \[0, 3\).*found 7"):
        from_tensors(x, y, tx, ty + 5, classes=("a", "b", "c"))
    with pytest.raises(hfp.InputError, match="training split: labels must be int64"):
        from_tensors(x, y.float(), tx, ty)


def test_a_data_set_that_contradicts_itself_is_one_line() -> None:
    data = from_tensors(*samples(60, 7), *samples(30, 7))
    for change, message in (
        ({"shape": (3, 2)}, r"shape says \[3, 2\]; its samples are \[7\]"),
        ({"mean": torch.zeros(2)}, r"mean must have one number for each of 7 channels; found \[2\]"),
        ({"std": torch.ones(1, 7)}, r"std must have one number for each of 7 channels; found \[1, 7\]"),
    ):
        with pytest.raises(hfp.InputError, match=message):
            hfp.simulate(hfp.Experiment(dataset=dataclasses.replace(data, **change), model=table_network(), clients=2))


def test_a_given_module_is_copied_and_starts_with_its_own_weights() -> None:
    model = table_network()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    federation = set_up(hfp.Experiment(dataset=dataset(7), model=model, **QUICK))
    assert federation.origin == "the given module's weights"
    assert torch.equal(federation.initial["0.weight"], before["0.weight"])
    Course(federation).advance()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_factorys_weights_are_drawn_from_the_runs_seed() -> None:
    first, again, other = (
        set_up(hfp.Experiment(dataset=dataset(7), model=table_network, seed=seed, **QUICK)).initial["0.weight"]
        for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_module_and_factory_are_found_by_name(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "mynets.py").write_text(
        "from torch import nn\ndef tiny(): return nn.Sequential(nn.Linear(7, 4), nn.Linear(4, 3))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    federation = set_up(hfp.Experiment(dataset=dataset(7), model="mynets:tiny", **QUICK))
    assert federation.initial["0.weight"].shape == (4, 7)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: nn.Sequential(nn.Linear(7, 8), nn.Linear(8, 2)), "data: labels must be in"),
        (lambda: nn.Sequential(nn.Linear(5, 8), nn.Linear(8, 3)), "the model does not run on the test data"),
        (lambda: nn.Sequential(nn.Unflatten(1, (7, 1)), nn.Linear(1, 3)), r"must return scores \[samples, classes\]"),
        (lambda: "resnet8", "gave a str; expected a callable without arguments"),
        (lambda size: None, "can't be called without arguments"),
        ("no_such_module:net", "no model 'no_such_module:net'"),
    ],
)
def test_a_model_that_does_not_fit_the_data_is_one_line(model: object, message: str) -> None:
    with pytest.raises(hfp.InputError, match=message):
        set_up(hfp.Experiment(dataset=dataset(7), model=model, **QUICK))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dataset": torch.zeros(3)}, "dataset must be a name; found"),
        ({"dataset": load_dataset("digits", limit=50), "data_root": "x"}, "data_root must be left out where the data"),
    ],
)
def test_an_experiment_refuses_what_it_can_not_use(settings: dict, message: str) -> None:
    with pytest.raises(hfp.InputError, match=message):
        hfp.Experiment(**settings)


def test_a_comparison_wants_names_by_which_its_results_are_known_again() -> None:
    for given in ({"model": table_network}, {"dataset": dataset(7)}):
        with pytest.raises(hfp.InputError, match="a comparison's (model|dataset) must be a name"):
            Comparison(variants=(Variant("fedavg", {"method": "fedavg"}),), base=given)


def test_a_checkpoint_names_what_was_given_in_python_and_wants_it_again(tmp_path: Path) -> None:
    given = {"dataset": dataset(7), "model": table_network}
    experiment = hfp.Experiment(**given, **{**QUICK, "rounds": 2})
    course = Course(set_up(experiment))
    course.advance()
    save_checkpoint(tmp_path, Checkpoint(experiment, course.run_state))
    expected = course.advance().state.weights
    found = load_checkpoint(tmp_path)
    assert found.experiment.as_dict() == json.loads(json.dumps(experiment.as_dict()))
    assert (found.experiment.model, found.experiment.dataset) == ("python:table_network", "python:mine")
    with pytest.raises(hfp.InputError, match="the model table_network was given in Python.*give the same again"):
        set_up(found.experiment)
    again = dataclasses.replace(found.experiment, **given)
    weights = Course(set_up(again), run_state=found.run_state).advance().state.weights
    assert all(torch.equal(weights[name], tensor) for name, tensor in expected.items())


def test_a_run_starts_from_a_files_weights(tmp_path: Path) -> None:
    first = set_up(hfp.Experiment(train_images=60, **QUICK))
    torch.save({name: tensor + 1 for name, tensor in first.initial.items()}, tmp_path / "start.pth")
    federation = set_up(hfp.Experiment(train_images=60, weights=str(tmp_path / "start.pth"), **QUICK))
    assert federation.origin == f"the weights in {tmp_path / 'start.pth'}"
    for name, tensor in federation.initial.items():
        assert torch.equal(tensor, first.initial[name] + 1), name


PROBLEM = """
import torch
from torch import nn
def model(): return nn.Sequential(nn.Linear(7, 16), nn.ReLU(), nn.Linear(16, 3))
def data(n, s):
    y = torch.arange(n) % 3
    return torch.randn(n, {width}, generator=torch.Generator().manual_seed(s)) + 3 * y.view(-1, 1), y
def client_data(client, clients): return data(60, client)
def test_data(): return {test}
"""


def problem(folder: Path, width: int = 7, test: str = "data(90, 99)"):
    (folder / "own_problem.py").write_text(PROBLEM.format(width=width, test=test))
    return load_problem(folder / "own_problem.py")


def test_a_problem_of_tables_trains_on_every_client(tmp_path: Path) -> None:
    own = problem(tmp_path)
    federation = set_up_own(hfp.Experiment(**{**QUICK, "rounds": 3, "epochs": 5}), own, [60] * 2)
    for client in range(2):
        federation = with_data_of(federation, own, client)
    course = Course(federation)
    assert [course.advance().record.accuracy for _ in range(3)][-1] > 60


def test_a_problem_may_have_dataclasses_whose_annotations_are_texts(tmp_path: Path) -> None:
    text = "from __future__ import annotations\nimport dataclasses\n" + PROBLEM.format(width=7, test="data(90, 99)")
    path = tmp_path / "own_problem.py"
    path.write_text(text + "\n@dataclasses.dataclass\nclass Sizes:\n    hidden: int = 16\n")
    assert load_problem(path).module.Sizes().hidden == 16


def test_a_client_whose_samples_have_another_shape_is_refused(tmp_path: Path) -> None:
    own = problem(tmp_path, width=5, test="(torch.randn(90, 7), torch.arange(90) % 3)")
    federation = set_up_own(hfp.Experiment(**QUICK), own, [60] * 2)
    with pytest.raises(hfp.InputError, match=r"data of client 1: samples must have .* shape \[7\]; found \[5\]"):
        with_data_of(federation, own, 1)


def test_a_problem_starts_from_its_own_models_weights(tmp_path: Path) -> None:
    with pytest.raises(hfp.InputError, match="weights can't be used with a model of your own"):
        set_up_own(hfp.Experiment(weights="x.pth", **QUICK), problem(tmp_path), [60] * 2)


def test_a_model_of_which_nothing_can_be_trained_is_refused():
    frozen = hfp.create_model("resnet8", in_channels=1).requires_grad_(False)
    with pytest.raises(hfp.InputError, match="no parameter of the given ResNet requires gradients"):
        hfp.simulate(hfp.Experiment(model=frozen, clients=2, rounds=1))
