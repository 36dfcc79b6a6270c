"""`hfp prune` and `hfp inspect` from the command line."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import torch
from commands import refused
from PIL import Image
from safetensors.torch import save_file

import hfp
from hfp.commands.cli import main

PNG = b"\x89PNG"


@pytest.fixture
def factory(tmp_path, monkeypatch) -> str:
    """`module:factory` of a small network, in the working directory."""
    (tmp_path / "own_networks.py").write_text(
        "import torch\n"
        "def small():\n"
        "    torch.manual_seed(0)\n"
        "    return torch.nn.Sequential(torch.nn.Conv2d(3, 12, 3), torch.nn.ReLU(), torch.nn.Conv2d(12, 8, 3),\n"
        "        torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(8, 2))\n"
        "number = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    yield "own_networks:small"
    sys.modules.pop("own_networks", None)


@pytest.fixture
def images(tmp_path) -> Path:
    """Two classes of eight images, dark and bright."""
    draw = torch.Generator().manual_seed(0)
    for index, name in enumerate(("dark", "bright")):
        folder = tmp_path / "images" / name
        folder.mkdir(parents=True)
        for number in range(8):
            pixels = torch.randint(128, (12, 12, 3), generator=draw, dtype=torch.uint8) + 127 * index
            Image.fromarray(pixels.numpy()).save(folder / f"{number}.png")
    return tmp_path / "images"


def test_prune_writes_a_file_and_inspect_reads_it(tmp_path, capsys):
    file, picture = tmp_path / "m.safetensors", tmp_path / "m.png"
    words = ["test_resnet", "--macs", "0.5", "--image-size", "64", "--out", str(file), "--picture", str(picture)]
    assert main(["prune", *words]) == 0
    shown = capsys.readouterr().out
    assert "layer1.0.conv1" in shown
    assert "total macs" in shown
    assert re.search(r"total latency .* ms → .* ms", shown)
    assert picture.read_bytes().startswith(PNG)
    assert hfp.load_pruned(file).metadata["budget"] == "macs=0.5"

    second = tmp_path / "second.png"
    assert main(["inspect", str(file), "--json", "--picture", str(second)]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["model"] == "test_resnet"
    before, after = document["costs"]["macs"]
    assert 0.49 <= after / before <= 0.5
    assert len(document["costs"]["latency"]) == 2
    assert document["costs"]["file bytes"][1] == file.stat().st_size
    assert {layer["name"] for layer in document["layers"]} >= {"conv1.0", "layer1.0.conv1", "fc"}
    assert second.read_bytes().startswith(PNG)
    assert main(["inspect", str(file)]) == 0
    assert re.search("criterion: l2", capsys.readouterr().out)


def test_prune_json_is_one_document(factory, tmp_path, capsys):
    assert main(["prune", factory, "--ratio", "0.5", "--image-size", "12", "--out", "m.safetensors", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["budget"] == "ratio=0.5"
    assert [(layer["name"], layer["before"], layer["after"]) for layer in document["layers"]] == [
        ("0", 12, 6), ("2", 8, 4), ("5", 2, 2),
    ]  # fmt: skip
    assert document["layers"][-1]["reason"] == "it is an output of the model"
    assert document["costs"]["macs"][0] == 10 * 10 * 12 * 27 + 8 * 8 * 8 * 108 + 2 * 8  # of one image
    assert document["costs"]["file bytes"][1] == document["file_bytes"] == (tmp_path / "m.safetensors").stat().st_size

    assert main(["inspect", "m.safetensors"]) == 0  # no skeleton: tensors only
    assert "total entries" in capsys.readouterr().out
    assert main(["inspect", "m.safetensors", "--model", factory, "--json"]) == 0  # the file knows the images' size
    costs = json.loads(capsys.readouterr().out)["costs"]
    assert {name: costs[name] for name in ("macs", "params")} == {
        name: document["costs"][name] for name in ("macs", "params")
    }


def test_images_score_repair_and_measure(factory, images, capsys):
    words = ["--params", "0.5", "--data", "imagefolder", "--data-root", str(images), "--image-size", "12"]
    more = ["--importance", "group-fisher", "--finetune", "2", "--batch-size", "4", "--out", "m.safetensors", "--json"]
    assert main(["prune", factory, *words, *more]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["criterion"] == "group-fisher"
    assert set(document["accuracy"]) == {"full", "pruned", "repaired"}
    assert all(0 <= share <= 1 for share in document["accuracy"].values())


def test_repairs_are_done_in_order_and_shown(factory, images, capsys):
    words = ["--params", "0.5", "--data", "imagefolder", "--data-root", str(images), "--image-size", "12"]
    more = ["--repair", "bias", "--repair", "least-squares", "--batch-size", "4", "--out", "m.safetensors"]
    assert main(["prune", factory, *words, *more]) == 0
    assert re.search("repaired by bias on \\d+ samples: 2 layers\nrepaired by least-squares", capsys.readouterr().out)
    assert main(["inspect", "m.safetensors"]) == 0
    assert "repairs: bias, least-squares" in capsys.readouterr().out


def test_weights_of_the_full_model_are_pruned(factory, tmp_path, capsys):
    import own_networks

    torch.manual_seed(1)
    model = own_networks.small()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    save_file(model.state_dict(), tmp_path / "full.safetensors")
    words = ["--ratio", "0.5", "--image-size", "12", "--weights", "full.safetensors", "--out", "m.safetensors"]
    assert main(["prune", factory, *words]) == 0
    again = hfp.load_pruned("m.safetensors", own_networks.small())
    kept = again.index_map.restrict(model.state_dict())
    assert all(torch.equal(tensor, kept[name]) for name, tensor in again.model.state_dict().items())


def test_export_gives_the_same_outputs(factory, tmp_path, capsys):
    pytest.importorskip("onnxruntime", reason="the onnx extra is not installed")
    words = ["--ratio", "0.5", "--image-size", "12", "--export", "onnx", "--out", "m.safetensors", "--json"]
    assert main(["prune", factory, *words]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["onnx"]["largest_difference"] < 1e-5
    assert (tmp_path / "m.onnx").stat().st_size > 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["resnet"], "required"),
        (
            ["resnet18", "--out", "m.safetensors"],
            "one of the arguments --macs --params --bytes --latency --ratio is required",
        ),
        (["resnet18", "--macs", "2", "--out", "m.safetensors"], "macs is the share that remains"),
        (["no_such_model", "--macs", "0.5", "--out", "m.safetensors"], "unknown model 'no_such_model'"),
        (["own_networks:nothing", "--macs", "0.5", "--out", "m.safetensors"], "expected module:factory"),
        (["own_networks:number", "--macs", "0.5", "--out", "m.safetensors"], "gave a int; expected a callable"),
        (
            ["resnet8", "--macs", "0.5", "--out", "nowhere/m.safetensors"],
            "no folder .*nowhere to write m.safetensors to",
        ),
        (["resnet8", "--macs", "0.5", "--out", "."], "is a folder; give the name of a file"),
        (["resnet8", "--macs", "0.5", "--round-to", "0", "--out", "m"], "round_to is a whole number .* not 0"),
        (
            ["resnet8", "--macs", "0.5", "--min-channels", "-1", "--out", "m"],
            "min_channels is a whole number .* not -1",
        ),
        (["resnet8", "--macs", "0.5", "--steps", "0", "--out", "m"], "steps is a whole number, at least 1, not 0"),
        (["resnet8", "--macs", "0.5", "--data", "imagefolder", "--out", "m"], "--data-root|data-root|PATH"),
        (["resnet8", "--macs", "0.5", "--image-size", "0", "--out", "m"], "--image-size is at least 1, not 0"),
        (["resnet8", "--macs", "0.001", "--image-size", "8", "--out", "m"], "is the least that is reachable"),
        (["resnet8", "--macs", "0.5", "--finetune", "1", "--out", "m"], "--finetune needs images"),
        (["resnet8", "--macs", "0.5", "--repair", "bias", "--out", "m"], "--repair needs images"),
        (["resnet8", "--macs", "0.5", "--repair", "magic", "--out", "m"], "invalid choice: 'magic'"),
        (["resnet8", "--macs", "0.5", "--importance", "taylor", "--out", "m"], "scores with images: --data NAME"),
        (["resnet8", "--macs", "0.5", "--ranking", "measured", "--out", "m"], "losses on images: --data NAME"),
        (["resnet8", "--macs", "0.5", "--importance", "best", "--out", "m"], "best"),
        (["resnet8", "--macs", "0.5", "--device", "gpu", "--out", "m"], "no device 'gpu' here"),
        (["resnet8", "--macs", "0.5", "--pretrained", "--out", "m"], "--pretrained loads timm's weights"),
        (["resnet8", "--macs", "0.5", "--weights", "none.safetensors", "--out", "m"], "no weights in none.safetensors"),
        (
            ["resnet8", "--macs", "0.5", "--ignore", "layer9", "--out", "m"],
            "ignored layer 'layer9' is not in the model",
        ),
    ],
)
def test_wrong_input_is_one_line(factory, words, message, capsys):
    assert re.search(message, refused(capsys, "prune", *words))


def test_inspect_refuses_what_is_no_pruned_model(tmp_path, capsys):
    assert "none.safetensors" in refused(capsys, "inspect", str(tmp_path / "none.safetensors"))
    (tmp_path / "text").write_text("nothing")
    assert "text" in refused(capsys, "inspect", str(tmp_path / "text"))
