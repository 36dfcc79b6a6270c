"""``hfp predict``, ``hfp extract`` and ``hfp inspect`` on a run's folder."""

from __future__ import annotations

import ast
import json
import shlex
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import refused
from PIL import Image
from runs import as_pictures, kept_run
from safetensors.torch import load_file, save_file

import hfp
from hfp.commands.cli import main
from hfp.data import load_dataset

DIGITS = load_dataset("digits")
FACTORY = "from torch import nn\ndef net(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Linear(8, 10))\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "run"
    kept_run(path)
    return path


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight digits, four of them in a folder further inside, and a note."""
    path = tmp_path_factory.mktemp("images")
    (path / "more").mkdir()
    for number, picture in enumerate(as_pictures(DIGITS.test.images[:8])):
        picture.save(path / ("more" if number > 3 else "") / f"{number}.png")
    (path / "note.txt").write_text("no image")
    return path


def printed(capsys, *words: str) -> dict:
    assert main([*words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_predict_prints_the_class_of_every_image_in_a_folder(folder, images, capsys):
    found = hfp.load_run(folder).predict(as_pictures(DIGITS.test.images[:8]))
    assert main(["predict", str(folder), str(images)]) == 0
    lines = capsys.readouterr().out.splitlines()
    paths = [images / f"{number}.png" for number in range(4)] + [images / "more" / f"{n}.png" for n in range(4, 8)]
    assert lines == [f"{path}: {p.label} ({p.probability:.1%})" for path, p in zip(paths, found, strict=True)]
    document = printed(capsys, "predict", str(folder), str(images / "0.png"))
    assert document["images"][0]["class"] == found[0].label
    assert document["images"][0]["probabilities"] == pytest.approx(found[0].probabilities, rel=1e-4)
    assert document["classes"] == list("0123456789")


def test_predict_prints_a_class_without_its_control_characters(folder, images, tmp_path, capsys):
    copied = Path(shutil.copytree(folder, tmp_path / "copy"))
    values = json.loads((copied / "model.json").read_text())
    (copied / "model.json").write_text(json.dumps({**values, "classes": [f"\x1b[2J{n}" for n in range(10)]}))
    assert main(["predict", str(copied), str(images / "0.png")]) == 0
    out = capsys.readouterr().out
    assert r": \x1b[2J" in out and "\x1b" not in out


@pytest.mark.filterwarnings("always")
@pytest.mark.parametrize("words", [["predict", "RUN", "IMAGE"], ["extract", "RUN", "--out", "OUT"]])
def test_statistics_that_were_not_the_tested_ones_are_one_line(words, folder, images, tmp_path, capsys):
    copied = Path(shutil.copytree(folder, tmp_path / "copy"))
    settings = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps({**settings, "batch_norm": "local"}))
    places = {"RUN": copied, "IMAGE": images / "0.png", "OUT": tmp_path / "out.safetensors"}
    assert main([str(places.get(word, word)) for word in words]) == 0
    error = capsys.readouterr().err
    assert error.startswith(f"hfp {words[0]}: the run tested its model with every client's own batch-norm statistics")
    assert error.count("\n") == 1


def test_json_has_null_for_what_is_no_number(folder, images, tmp_path, capsys):
    broken = shutil.copytree(folder, tmp_path / "run")
    state = load_file(broken / "global.safetensors")
    save_file(
        {name: tensor * float("nan") if tensor.is_floating_point() else tensor for name, tensor in state.items()},
        broken / "global.safetensors",
    )
    assert main(["predict", str(broken), str(images / "0.png"), "--json"]) == 0
    document = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert document["images"][0]["probability"] is None


def test_predict_says_that_colour_images_were_made_grey(folder, images, tmp_path, capsys):
    colour = np.zeros((8, 8, 3), np.uint8)
    colour[..., 0] = 200
    Image.fromarray(colour).save(tmp_path / "red.png")
    assert main(["predict", str(folder), str(tmp_path / "red.png"), str(images / "0.png"), "--json"]) == 0
    out, err = capsys.readouterr()
    assert err == ("hfp predict: 1 of 2 images was converted from colour to grey, because the model takes 1 channel\n")
    assert [image["converted"] for image in json.loads(out)["images"]] == ["from colour to grey", None]


def test_predict_asks_a_clients_own_model(folder, images, capsys):
    document = printed(capsys, "predict", str(folder), str(images / "0.png"), "--client", "1")
    expected = hfp.load_run(folder).submodel(1).predict(images / "0.png")[0]
    assert document["images"][0]["probabilities"] == pytest.approx(expected.probabilities, rel=1e-5)


def test_extract_writes_a_file_that_everything_reads(folder, images, tmp_path, capsys):
    path = tmp_path / "m.safetensors"
    document = printed(capsys, "extract", str(folder), "--client", "1", "--out", str(path))
    assert (document["client"], document["round"], document["trained"]) == (1, 2, False)
    submodel, pruned = hfp.load_run(folder).submodel(1), hfp.load_pruned(path)
    for name, tensor in submodel.model.state_dict().items():
        assert torch.equal(pruned.model.state_dict()[name], tensor), name
    assert not pruned.model.training
    again = hfp.load_pruned(path, hfp.create_model("resnet8", 10, 1))
    assert again.index_map.tensors.keys() == pruned.index_map.tensors.keys()
    shown = printed(capsys, "inspect", str(path))
    assert shown["costs"]["params"][1] == document["parameters"]
    assert shown["metadata"]["client"] == 1
    asked = printed(capsys, "predict", str(path), str(images / "0.png"))["images"][0]
    assert asked["probabilities"] == pytest.approx(submodel.predict(images / "0.png")[0].probabilities, rel=1e-5)
    assert "is one client's model already" in refused(capsys, "predict", str(path), str(images), "--client", "1")


def test_extract_says_whose_batch_norm_statistics_an_untrained_client_model_has(folder, tmp_path, capsys):
    kept_run(tmp_path / "kept", save_clients=True, rounds=1)
    for run, said in ((folder, True), (tmp_path / "kept", False)):
        path = tmp_path / f"{said}.safetensors"
        assert main(["extract", str(run), "--client", "1", "--out", str(path)]) == 0
        assert ("the global model's batch-norm statistics" in capsys.readouterr().err) == said


def test_what_is_suggested_can_be_pasted(folder, tmp_path, capsys):
    path = tmp_path / 'a "model".safetensors'
    assert main(["extract", str(folder), "--out", str(path)]) == 0
    shown = capsys.readouterr().out.splitlines()[1]
    assert shlex.split(shown.split(", or ")[1]) == ["hfp", "predict", str(path), "IMAGE", "..."]
    assert ast.literal_eval(shown.split("load_submodel(")[1].split(")")[0]) == str(path)
    spaced = shutil.copytree(folder, tmp_path / "my run")
    found = printed(capsys, "inspect", str(spaced))
    assert shlex.split(found["predict"])[2] == shlex.split(found["extract"])[2] == str(spaced)


def test_extract_writes_the_global_model_too(folder, tmp_path, capsys):
    path = tmp_path / "m.safetensors"
    assert main(["extract", str(folder), "--out", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "the global model, as trained in round 2" in shown
    assert f'load it with hfp.load_submodel("{path}"), or hfp predict {path}' in shown
    run = hfp.load_run(folder)
    for name, tensor in hfp.load_pruned(path).model.state_dict().items():
        assert torch.equal(tensor, run.model.state_dict()[name]), name


def test_a_file_of_extract_takes_images_as_the_run_does(folder, images, tmp_path, capsys):
    for client, words in ((1, ["--client", "1"]), (None, [])):
        path = tmp_path / f"{client}.safetensors"
        assert main(["extract", str(folder), *words, "--out", str(path)]) == 0
        found, run = hfp.load_submodel(path), hfp.load_run(folder)
        expected = (run if client is None else run.submodel(client)).predict(images / "0.png")[0]
        assert found.predict(images / "0.png")[0].probabilities == pytest.approx(expected.probabilities, rel=1e-5)
        assert found.client == client
        assert repr(found).startswith("Submodel(the global model," if client is None else "Submodel(client 1,")


def test_an_onnx_file_takes_images_as_they_are(folder, tmp_path, capsys):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    words = ["--out", str(tmp_path / "m.safetensors"), "--onnx", str(tmp_path / "m.onnx")]
    document = printed(capsys, "extract", str(folder), "--client", "0", *words)
    assert document["onnx"]["takes"] == "uint8 0 to 255 [samples, 1, 8, 8]"
    pictures = as_pictures(DIGITS.test.images[:5])
    session = runtime.InferenceSession(str(tmp_path / "m.onnx"), providers=["CPUExecutionProvider"])
    pixels = np.stack([np.asarray(picture)[None] for picture in pictures])
    (scores,) = session.run(None, {session.get_inputs()[0].name: pixels})
    expected = [prediction.probabilities for prediction in hfp.load_run(folder).submodel(0).predict(pictures)]
    found = torch.from_numpy(scores).double().softmax(1)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-3, atol=1e-4)


def test_inspect_says_what_a_run_is_and_how_to_use_it(folder, capsys):
    names = ("global.safetensors", "checkpoint.safetensors", "config.json", "model.json", "plans.json", "metrics.jsonl")
    for path in (folder, *(folder / name for name in names)):
        document = printed(capsys, "inspect", str(path))
        assert (document["kind"], document["model"], document["method"]) == ("run", "resnet8", "ca-hfp")
        assert (document["dataset"], document["rounds"], document["rounds_planned"]) == ("digits", 2, 2)
        assert document["accuracy"] == hfp.load_run(folder).accuracy
        assert document["load"] == f'hfp.load_run("{folder}")'
        assert main(["inspect", str(path)]) == 0
        shown = capsys.readouterr().out
        for words in (f"accuracy {document['accuracy']:.2f} % after 2 of 2 rounds", document["load"], "hfp predict"):
            assert words in shown


def test_any_file_of_a_run_stands_for_it_when_it_is_asked(folder, images, capsys):
    asked = [printed(capsys, "predict", str(path), str(images)) for path in (folder, folder / "checkpoint.safetensors")]
    assert asked[0]["images"] == asked[1]["images"]


def test_a_full_model_without_its_folder_is_known_for_what_it_is(folder, tmp_path, capsys):
    alone = tmp_path / "model.safetensors"
    alone.write_bytes((folder / "global.safetensors").read_bytes())
    line = refused(capsys, "inspect", str(alone))
    assert "is the full model of a run (resnet8, trained by ca-hfp on digits)" in line
    assert "hfp.load_run" in line


def test_a_run_of_a_factorys_model_is_used_with_the_factory(tmp_path, monkeypatch, images, capsys):
    (tmp_path / "ownnets.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    words = ["--train-images", "60", "--clients", "2", "--rounds", "1", "--head-start", "1", "--save-clients"]
    assert main(["run", "--model", "ownnets:net", *words, "--out", "run"]) == 0
    capsys.readouterr()
    assert sorted(path.name for path in (tmp_path / "run/clients").iterdir()) == [
        "client-0.safetensors", "client-1.safetensors",
    ]  # fmt: skip
    assert "whose code is not run for a file's sake" in refused(capsys, "predict", "run", str(images))
    assert printed(capsys, "inspect", "run")["load"] == 'hfp.load_run("run", model=...)'
    given = ["--model", "ownnets:net"]
    assert len(printed(capsys, "predict", "run", str(images), *given)["images"]) == 8
    assert main(["extract", "run", "--client", "0", "--out", "m.safetensors", *given]) == 0
    shown = capsys.readouterr().out
    assert "as trained in round 1" in shown
    assert 'load it with hfp.load_submodel("m.safetensors", model=...)' in shown
    assert printed(capsys, "inspect", "m.safetensors", *given)["costs"]["params"][0] == 64 * 8 + 8 + 8 * 10 + 10
    assert "whose code is not run" in refused(capsys, "predict", "m.safetensors", str(images))
    assert len(printed(capsys, "predict", "m.safetensors", str(images), *given)["images"]) == 8


def test_a_run_starts_from_given_weights(tmp_path, capsys):
    weights = tmp_path / "start.pth"
    torch.save(hfp.create_model("resnet8", 10, 1).state_dict(), weights)
    quick = ["--train-images", "60", "--clients", "2", "--rounds", "1", "--head-start", "1"]
    assert main(["run", *quick, "--weights", str(weights), "--out", str(tmp_path / "run")]) == 0
    assert hfp.load_run(tmp_path / "run").settings["weights"] == str(weights)
    assert f"the weights in {weights}" in capsys.readouterr().out
    line = refused(capsys, "run", *quick, "--weights", str(tmp_path / "none.pth"), "--out", str(tmp_path / "other"))
    assert "there is no such file" in line
    assert "pretrained weights are timm's" in refused(
        capsys, "run", *quick, "--pretrained", "--out", str(tmp_path / "o")
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["predict", "RUN", "nowhere.png"], "there is no image nowhere.png"),
        (["predict", "RUN", "RUN/model.json"], "model.json can't be read: none of the known formats"),
        (["predict", "RUN", "EMPTY"], "there are no images in"),
        (["predict", "EMPTY", "RUN"], "there are no images in"),
        (["predict", "RUN", "IMAGE", "--client", "7"], "client 7 was never asked to train"),
        (["predict", "nowhere", "IMAGE"], "there is no nowhere; give a run's folder, or a file that hfp extract wrote"),
        (["extract", "RUN", "--client", "0", "--out", "IMAGE"], "is there already; give the name of a new file"),
        (["extract", "RUN", "--client", "0", "--out", "nowhere/m.safetensors"], "there is no folder"),
        (["extract", "RUN", "--out", "m", "--onnx", "./m"], "--out and --onnx are different files, not m twice"),
        (["inspect", "EMPTY"], "there is no model.json in"),
        (["inspect", "RUN", "--picture", "x.png"], "--picture is for files of pruned models"),
    ],
)
def test_wrong_input_is_one_line(words, message, folder, images, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    places = {"RUN": str(folder), "EMPTY": str(tmp_path / "empty"), "IMAGE": str(images / "0.png")}
    given = [
        word.replace("RUN", places["RUN"]) if word.startswith("RUN/") else places.get(word, word) for word in words
    ]
    assert message in refused(capsys, *given)
