"""A run's folder alone gives its models, ready to predict, whatever kind of image they are asked about."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from runs import as_pictures, kept_run
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import hfp
from hfp.data import Dataset, Split, from_tensors, load_dataset, make_dataset
from hfp.federation.records import Run
from hfp.federation.rounds import Course
from hfp.federation.setup import set_up
from hfp.reconstruct import MapError, Pruned, save_pruned
from hfp.results.inputs import ModelInput
from hfp.results.load import TrainedClassifier

DIGITS = load_dataset("digits")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs") / "run"


@pytest.fixture(scope="module")
def finished(folder: Path) -> Run:
    return kept_run(folder, save_clients=True)


@pytest.fixture(scope="module")
def run(finished: Run, folder: Path) -> hfp.SavedRun:
    return hfp.load_run(folder)


@pytest.fixture
def copied(run: hfp.SavedRun, tmp_path: Path) -> Path:
    """The folder of a run, to be changed."""
    import shutil

    return Path(shutil.copytree(run.folder, tmp_path / "copy"))


def accuracy(classifier: TrainedClassifier, images: Tensor | Sequence[object], labels: Tensor) -> float:
    found = [prediction.index for prediction in classifier.predict(images)]
    return 100 * float(np.mean([index == label for index, label in zip(found, labels.tolist(), strict=True)]))


def test_the_global_model_is_the_runs(run: hfp.SavedRun, finished: Run) -> None:
    assert not run.model.training
    for name, tensor in finished.global_state.items():
        assert torch.equal(run.model.state_dict()[name], tensor), name
    assert run.experiment == finished.experiment
    assert [line["accuracy"] for line in run.history] == [round(r.accuracy or 0, 4) for r in finished.history]
    assert run.accuracy == pytest.approx(finished.accuracy, abs=1e-4)
    assert run.classes == tuple("0123456789")
    assert (run.input.shape, run.input.largest) == ((1, 8, 8), 16)


def test_the_data_sets_own_tensors_give_the_accuracy_of_the_run(run: hfp.SavedRun) -> None:
    assert accuracy(run, DIGITS.test.images, DIGITS.test.labels) == pytest.approx(run.accuracy, abs=1e-4)


def test_pictures_of_any_mode_and_size_are_scaled_to_what_the_model_was_trained_on(
    run: hfp.SavedRun, tmp_path: Path
) -> None:
    pictures, labels = as_pictures(DIGITS.test.images), DIGITS.test.labels
    exact = accuracy(run, pictures, labels)
    assert exact == pytest.approx(run.accuracy, abs=0.6)
    coloured = [picture.convert("RGB") for picture in pictures]
    assert accuracy(run, coloured, labels) == exact
    large = [picture.resize((32, 32), Image.Resampling.NEAREST) for picture in coloured]
    assert accuracy(run, large, labels) == pytest.approx(exact, abs=6)  # made small again, they are a little blurred
    deep = [Image.fromarray(np.asarray(picture).astype(np.uint16) * 257) for picture in pictures]
    assert accuracy(run, deep, labels) == pytest.approx(exact, abs=0.6)
    pictures[0].save(tmp_path / "0.png")
    (of_file,), (of_picture,) = run.predict(tmp_path / "0.png"), run.predict(pictures[0])
    assert of_file == of_picture


def test_a_prediction_has_the_class_and_the_probabilities_of_all(run: hfp.SavedRun) -> None:
    (found,) = run.predict(DIGITS.test.images[0])
    assert found.label == run.classes[found.index]
    assert found.probability == max(found.probabilities) == found.probabilities[found.index]
    assert sum(found.probabilities) == pytest.approx(1)


def test_batches_make_no_difference(run: hfp.SavedRun) -> None:
    whole, parts = (run.predict(DIGITS.test.images[:20], batch_size=size) for size in (64, 3))
    assert [p.label for p in whole] == [p.label for p in parts]
    assert [p.probability for p in whole] == pytest.approx([p.probability for p in parts], rel=1e-5)


WRONG_SCALE = {
    "floats of 0 to 1": (DIGITS.test.images.float() / 16, "uint8 values 0 to 16 .* found a tensor of torch.float32"),
    "normalised": (DIGITS.normalise(DIGITS.test.images), "found a tensor of torch.float32"),
    "0 to 255": ((DIGITS.test.images.float() * 255 / 16).byte(), "values up to 255.*given as files or PIL images"),
    "channels last": (DIGITS.test.images.permute(0, 2, 3, 1), r"found a tensor \[64, 8, 8, 1\]"),
    "whole numbers": (DIGITS.test.images.int().numpy(), "found a tensor of torch.int32"),
    "nothing": ([], "found list of none"),
    "something else": (7, "expected image files, PIL images or tensors; found int"),
}


@pytest.mark.parametrize("case", WRONG_SCALE)
def test_a_wrong_scale_is_refused_not_answered(run: hfp.SavedRun, case: str) -> None:
    images, message = WRONG_SCALE[case]
    with pytest.raises(hfp.InputError, match=message):
        run.predict(images)


def test_what_is_no_image_is_one_line(run: hfp.SavedRun, tmp_path: Path) -> None:
    (tmp_path / "note.png").write_text("no image")
    for path in (tmp_path / "note.png", tmp_path / "missing.png", tmp_path):
        with pytest.raises(hfp.InputError, match=f"image {path} can't be read") as caught:
            run.predict(path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("client", [0, 1])
def test_a_clients_model_as_trained_is_the_one_that_its_reply_had(
    client: int, run: hfp.SavedRun, finished: Run
) -> None:
    federation, replies = set_up(finished.experiment), {}

    class Keeps(hfp.Observer):
        def update_came(self, state, update) -> None:
            replies[update.client.index] = federation.method.trained_part(federation.context, state, update)

    Course(federation, observers=[Keeps()]).run()
    submodel = run.submodel(client)
    assert submodel.trained
    assert submodel.round == 2
    own = submodel.model.state_dict()
    for name, tensor in replies[client].after.items():
        if "running" not in name and "num_batches" not in name:
            assert torch.equal(own[name], tensor), name
    assert accuracy(submodel, DIGITS.test.images, DIGITS.test.labels) > 50
    kept = {name: place.kept for name, place in replies[client].index_map.tensors.items()}
    for name, place in submodel.index_map.tensors.items():
        for mine, theirs in zip(place.kept, kept[name], strict=True):
            assert (mine is None) == (theirs is None)
            assert mine is None or torch.equal(mine, theirs)


def test_a_clients_model_as_planned_is_its_part_of_the_global_model(copied: Path, run: hfp.SavedRun) -> None:
    trained = run.submodel(1)
    for path in (copied / "clients").iterdir():
        path.unlink()
    planned = hfp.load_run(copied).submodel(1)
    assert not planned.trained
    expected = trained.index_map.restrict(run.model.state_dict())
    for name, tensor in planned.model.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    before = {name: tensor.clone() for name, tensor in planned.model.state_dict().items()}
    planned.reestimate(DIGITS.train.images[:100])
    changed = {name for name, tensor in planned.model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed
    assert all("running" in name or "num_batches" in name for name in changed)


def test_a_client_that_never_trained_has_no_model(run: hfp.SavedRun) -> None:
    with pytest.raises(hfp.InputError, match="client 9 was never asked to train; the run has plans of clients 0, 1"):
        run.submodel(9)


def _without(key: str):
    def change(values: dict) -> dict:
        return {name: value for name, value in values.items() if name != key}

    return change


def _with_input(**changes: object):
    return lambda values: {**values, "input": {**values["input"], **changes}}


DAMAGED = {
    "another version": (
        lambda v: {**v, "format": 2},
        "is of format version 2, written by hfp .*use a matching version",
    ),
    "no classes": (_without("classes"), "model.json is damaged"),
    "an entry more": (lambda v: {**v, "code": "x"}, "model.json is damaged"),
    "a class that is no text": (lambda v: {**v, "classes": [1, 2]}, "model.json is damaged"),
    "a class less": (
        lambda v: {**v, "classes": v["classes"][1:]},
        r"of another model than ResNet: classifier.weight is",
    ),
    "a negative side": (_with_input(shape=[1, -8, 8]), "model.json is damaged"),
    "an absurd side": (_with_input(shape=[10**9, 8, 8]), "model.json is damaged"),
    "a mean too few": (_with_input(mean=[]), "model.json is damaged"),
    "a deviation of 0": (_with_input(std=[0.0]), "model.json is damaged"),
    "another dtype": (_with_input(dtype="int8"), "model.json is damaged"),
    "white of 0": (_with_input(largest=0), "model.json is damaged"),
    "another model": (lambda v: {**v, "model": "resnet20"}, "of another model than ResNet: only one of them has"),
    "an unknown model": (lambda v: {**v, "model": "resnet9"}, "unknown model 'resnet9'"),
    "code to run": (lambda v: {**v, "model": "os:getcwd"}, "whose code is not run for a file's sake"),
    "a list": (lambda v: [v], "is no description of a model"),
    "an input that is a list": (lambda v: {**v, "input": []}, "model.json is damaged"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_description_that_was_altered_is_refused_in_one_line(case: str, copied: Path) -> None:
    change, message = DAMAGED[case]
    values = json.loads((copied / "model.json").read_text())
    (copied / "model.json").write_text(json.dumps(change(values)))
    with pytest.raises(hfp.InputError, match=message) as caught:
        hfp.load_run(copied)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["model.json", "config.json", "global.safetensors"])
def test_a_file_that_is_missing_or_damaged_is_named(name: str, copied: Path) -> None:
    (copied / name).write_bytes(b"{")
    with pytest.raises(hfp.InputError, match=f"{name} is damaged"):
        hfp.load_run(copied)
    (copied / name).unlink()
    with pytest.raises(hfp.InputError, match=f"there is no {name} in "):
        hfp.load_run(copied)


def test_one_flipped_bit_of_the_model_is_noticed(copied: Path) -> None:
    content = bytearray((copied / "global.safetensors").read_bytes())
    content[-2000] ^= 0x40
    (copied / "global.safetensors").write_bytes(content)
    with pytest.raises(hfp.InputError, match="global.safetensors is damaged: its checksum is not that of its content"):
        hfp.load_run(copied)


def test_a_folder_that_is_not_there_or_no_runs_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(hfp.InputError, match="there is no folder"):
        hfp.load_run(tmp_path / "none")
    with pytest.raises(hfp.InputError, match=r"there is no model.json in .*; give the folder of a run"):
        hfp.load_run(tmp_path)


def test_a_runs_full_model_is_no_file_of_a_pruned_one(copied: Path) -> None:
    with pytest.raises(hfp.InputError, match="is the full model of a run.*which hfp.load_run takes"):
        hfp.load_pruned(copied / "global.safetensors")


def test_tensors_of_other_shapes_or_types_are_refused(copied: Path) -> None:
    state = load_file(copied / "global.safetensors")
    for altered in (state["stem.0.weight"][:8].clone(), state["stem.0.weight"].half()):
        save_file({**state, "stem.0.weight": altered}, copied / "global.safetensors")
        with pytest.raises(hfp.InputError, match="of another model than ResNet: stem.0.weight is"):
            hfp.load_run(copied)


@pytest.mark.parametrize("text", ['{"format": 2, "clients": {}}', "[]", '{"format": 1, "clients": 3}'])
def test_plans_of_another_format_are_refused(text: str, copied: Path) -> None:
    (copied / "plans.json").write_text(text)
    (copied / "clients" / "client-0.safetensors").unlink()
    with pytest.raises(hfp.InputError, match="holds no plans of format version 1"):
        hfp.load_run(copied).submodel(0)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"round": 1}, "plans.json is damaged"),
        ({"round": 1, "kept": {"stem.0": ["a"]}}, "plans.json is damaged"),
        ({"round": 1, "kept": {"nowhere": [1]}}, "the plan of client 0 is of another model"),
    ],
)
def test_plans_that_were_altered_are_refused(entry: dict, message: str, copied: Path) -> None:
    (copied / "plans.json").write_text(json.dumps({"format": 1, "clients": {"0": entry}}))
    (copied / "clients" / "client-0.safetensors").unlink()
    with pytest.raises(hfp.InputError, match=message):
        hfp.load_run(copied).submodel(0)


def test_a_clients_file_of_another_model_is_refused(copied: Path) -> None:
    model, inputs = hfp.create_model("resnet8", 10, 3), torch.randn(2, 3, 8, 8)
    pruned = hfp.prune(model, inputs, hfp.Budget(ratio=0.5), importance="l1")
    hfp.save_pruned(pruned, copied / "clients" / "client-0.safetensors")
    with pytest.raises(MapError, match="is not the model that was pruned"):
        hfp.load_run(copied).submodel(0)


def test_a_clients_file_whose_round_is_no_number_is_refused(copied: Path) -> None:
    file = copied / "clients" / "client-0.safetensors"
    pruned = hfp.load_pruned(file)
    save_pruned(Pruned(pruned.model, pruned.index_map), file, metadata={**pruned.metadata, "round": "first"})
    for load in (lambda: hfp.load_submodel(file), lambda: hfp.load_run(copied).submodel(0)):
        with pytest.raises(hfp.InputError, match="client-0.safetensors is damaged: round must be a whole number"):
            load()


def test_half_a_line_of_metrics_is_what_an_interruption_left(copied: Path) -> None:
    with (copied / "metrics.jsonl").open("a") as file:
        file.write('{"round": 3, "accu')
    assert len(hfp.load_run(copied).history) == 2
    with (copied / "metrics.jsonl").open("a") as file:
        file.write("\n")
    with pytest.raises(hfp.InputError, match="metrics.jsonl, line 3 is damaged"):
        hfp.load_run(copied)


def table_network() -> nn.Module:
    return nn.Sequential(nn.Linear(7, 8), nn.ReLU(), nn.Linear(8, 3))


def table() -> Dataset:
    labels = torch.arange(90) % 3
    samples = torch.randn(90, 7, generator=torch.Generator().manual_seed(0)) + 3 * labels.view(-1, 1)
    return from_tensors(samples[:60], labels[:60], samples[60:], labels[60:], classes=("low", "middle", "high"))


def test_a_model_given_in_python_has_to_be_given_again(tmp_path: Path) -> None:
    finished = kept_run(tmp_path / "run", dataset=table(), model=table_network, train_images=None)
    with pytest.raises(hfp.InputError, match="model table_network was given in Python.*--model module:factory"):
        hfp.load_run(tmp_path / "run")
    given = table_network()
    before = given[0].weight.clone()
    for model in (table_network, given):
        run = hfp.load_run(tmp_path / "run", model)
        assert accuracy(run, table().test.images, table().test.labels) == pytest.approx(finished.accuracy, abs=1e-4)
        assert run.predict(table().test.images[0])[0].label in ("low", "middle", "high")
        assert run.submodel(1).model[0].weight.shape[0] < 8
    assert torch.equal(given[0].weight, before)
    with pytest.raises(hfp.InputError, match="the model takes floats .* no image files"):
        run.predict("table.png")
    with pytest.raises(hfp.InputError, match=r"found a tensor \[2, 5\]"):
        run.predict(torch.randn(2, 5))


def test_a_run_on_a_data_set_that_is_not_registered_here_can_be_used(copied: Path) -> None:
    settings = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps({**settings, "dataset": "elsewhere"}))
    run = hfp.load_run(copied)
    assert run.predict(DIGITS.test.images[:2])
    with pytest.raises(hfp.InputError, match="unknown data set 'elsewhere'"):
        _ = run.experiment


@pytest.mark.parametrize(("policy", "warned"), [("batch", True), ("local", True), ("aggregate", False)])
def test_statistics_that_were_not_the_tested_ones_are_said_aloud(policy: str, warned: bool, copied: Path) -> None:
    settings = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps({**settings, "batch_norm": policy}))
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always")
        hfp.load_run(copied)
    assert [policy in str(note.message) for note in notes] == [True] * warned


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("height", "width"), [(8, 8), (6, 10)])
def test_images_come_out_as_the_data_set_has_them(channels: int, height: int, width: int) -> None:
    images = torch.randint(256, (9, channels, height, width), dtype=torch.uint8)
    labels = torch.arange(9) % 2
    data = make_dataset("made", Split(images, labels), Split(images, labels), ("a", "b"))
    taken = ModelInput.of(data)
    expected = data.normalise(images)
    assert torch.equal(taken.prepare(images).samples, expected)
    assert torch.equal(taken.prepare(images.numpy()).samples, expected)
    arrays = images.permute(0, 2, 3, 1).numpy()
    pictures = [Image.fromarray(array[..., 0] if channels == 1 else array) for array in arrays]
    torch.testing.assert_close(taken.prepare(pictures).samples, expected, rtol=0, atol=1e-6)
    other = images[:, :1] if channels == 3 else images.expand(-1, 3, -1, -1)
    assert taken.prepare(other).samples.shape == expected.shape


@pytest.mark.parametrize("channels", [1, 3])
def test_a_conversion_between_grey_and_colour_is_told(channels: int) -> None:
    images = torch.randint(256, (9, channels, 8, 8), dtype=torch.uint8)
    labels = torch.arange(9) % 2
    taken = ModelInput.of(make_dataset("made", Split(images, labels), Split(images, labels), ("a", "b")))
    grey = Image.fromarray(np.full((8, 8), 30, np.uint8))
    colour = Image.fromarray(np.full((8, 8, 3), (30, 60, 90), np.uint8))
    told = ("", "from colour to grey", "") if channels == 1 else ("from grey to colour", "", "")
    assert taken.prepare([grey, colour, grey.convert("RGB")]).converted == told
    tensors = [torch.from_numpy(np.array(one)).permute(2, 0, 1) for one in (grey.convert("RGB"), colour)]
    assert taken.prepare(torch.stack(tensors)).converted == (told[:2] if channels == 1 else ("", ""))
    assert taken.prepare(tensors[0][:1]).converted == told[:1]
    assert taken.prepare(images).converted == ("",) * 9


def test_nothing_in_a_runs_folder_is_a_pickle(run: hfp.SavedRun) -> None:
    suffixes = {path.suffix for path in run.folder.rglob("*") if path.is_file()}
    assert suffixes <= {".json", ".jsonl", ".safetensors"}


def test_the_representations_fit_a_line(run: hfp.SavedRun) -> None:
    for shown in (repr(run), repr(run.submodel(0))):
        assert "\n" not in shown
        assert len(shown) < 250


def test_a_run_of_one_round_says_one_round(tmp_path: Path) -> None:
    kept_run(tmp_path / "run", rounds=1)
    assert ", 1 round, " in repr(hfp.load_run(tmp_path / "run"))
