"""`hfp prune` and `hfp inspect` from the command line."""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from commands import refused
from PIL import Image
from safetensors.torch import save_file

import hfp
from hfp.commands.cli import main
from hfp.errors import InputError
from hfp.reconstruct import IndexMap, Pruned, save_pruned

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


def test_what_a_model_s_own_code_prints_is_not_in_the_document(factory, tmp_path, capsys):
    source = tmp_path / "own_networks.py"
    source.write_text(source.read_text().replace("def small():\n", "def small():\n    print('made')\n"))
    words = ["--macs", "0.5", "--image-size", "12", "--out", "m.safetensors", "--json"]
    assert main(["prune", factory, *words]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["model"] == factory
    assert "made\n" in shown.err
    assert main(["prune", factory, *words]) == 2  # the file is there, and standard output is as before
    print("after")
    assert capsys.readouterr().out == "after\n"


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
    assert set(document["accuracy"]) == {"full", "pruned", "fine-tuned"}
    assert all(0 <= share <= 1 for share in document["accuracy"].values())


def test_repairs_are_done_in_order_and_shown(factory, images, capsys):
    words = ["--params", "0.5", "--data", "imagefolder", "--data-root", str(images), "--image-size", "12"]
    more = ["--repair", "bias", "--repair", "least-squares", "--batch-size", "4", "--out", "m.safetensors"]
    assert main(["prune", factory, *words, *more]) == 0
    assert re.search("repaired by bias on \\d+ samples: 2 layers\nrepaired by least-squares", capsys.readouterr().out)
    assert main(["inspect", "m.safetensors"]) == 0
    assert "repairs: bias, least-squares" in capsys.readouterr().out


def test_data_repair_unless_that_is_switched_off(factory, images, capsys):
    words = ["--params", "0.5", "--data", "imagefolder", "--data-root", str(images), "--image-size", "12", "--force"]
    out = ["--out", "m.safetensors", "--batch-size", "4"]
    assert main(["prune", factory, *words, *out]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"repair: +least-squares, from \d+ training images; --no-repair goes without", shown)
    assert re.search(r"error .*\n(.*\n)+.* [\d.]+% → [\d.]+% ", shown)  # a column of the layer table
    assert main(["prune", factory, *words, *out, "--json"]) == 0
    repair = json.loads(capsys.readouterr().out)["repairs"][0]
    assert all(before >= after for layer in repair["layers"] for before, after in [layer["error"]])
    assert main(["prune", factory, *words, "--out", "m.safetensors", "--no-repair"]) == 0
    shown = capsys.readouterr().out
    assert "repair:  none, as --no-repair says" in shown
    assert "repaired by" not in shown


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


def test_nothing_is_written_where_a_model_can_t_be_exported(factory, tmp_path, monkeypatch, capsys):
    def refuse(*_):
        raise InputError("output 0 of ONNX Runtime differs from the model's by 1")

    monkeypatch.setattr("hfp.commands.prune.check_exporter", lambda: None)
    monkeypatch.setattr("hfp.commands.prune.export_onnx", refuse)
    words = ["--ratio", "0.5", "--image-size", "12", "--out", "m.safetensors", "--export", "onnx"]
    assert "differs from the model's by 1" in refused(capsys, "prune", factory, *words)
    assert not list(tmp_path.glob("m.*"))


def test_every_output_of_a_model_with_several_is_checked(tmp_path, monkeypatch, capsys):
    pytest.importorskip("onnxruntime", reason="the onnx extra is not installed")
    (tmp_path / "two_heads.py").write_text(
        "from torch import nn\n"
        "class Two(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.a, self.b, self.c = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1), nn.Conv2d(8, 2, 1)\n"
        "    def forward(self, x):\n"
        "        y = self.a(x).relu()\n"
        "        return self.b(y), self.c(y)\n"
    )
    monkeypatch.chdir(tmp_path)
    words = ["--macs", "0.5", "--image-size", "12", "--export", "onnx", "--out", "m.safetensors"]
    assert main(["prune", "two_heads:Two", *words]) == 0
    assert "m.onnx differs by" in capsys.readouterr().out


def test_the_first_lines_say_what_is_pruned(factory, capsys):
    assert main(["prune", "resnet8", "--ratio", "0.5", "--image-size", "16", "--out", "m.safetensors"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"model: +resnet8, 78,042 parameters, images of 3 x 16 x 16", lines[0])
    assert re.match(r"weights: RANDOM, nothing in this model is trained; .* --pretrained or --weights FILE", lines[1])
    assert re.fullmatch(r"data: +none; accuracy is not measured", lines[2])
    assert re.fullmatch(r"device: +cpu, \d+ threads?", lines[3])
    assert lines[4] == "repair:  none, for want of data; --data NAME gives some"
    assert hfp.load_pruned("m.safetensors", hfp.create_model("resnet8")).metadata["weights"].startswith("RANDOM")
    assert main(["prune", factory, "--ratio", "0.5", "--image-size", "12", "--out", "n.safetensors", "--json"]) == 0
    streams = capsys.readouterr()
    assert json.loads(streams.out)["weights"] == "as own_networks:small makes them"
    assert "weights: as own_networks:small makes them" in streams.err


def test_the_data_are_said(factory, images, capsys):
    words = ["--ratio", "0.5", "--data", "imagefolder", "--data-root", str(images), "--image-size", "12"]
    assert main(["prune", factory, *words, "--out", "m.safetensors"]) == 0
    assert re.search(r"data: +imagefolder, \d+ training and \d+ test images of 2 classes", capsys.readouterr().out)


def test_several_limits_are_met_and_their_distances_said(factory, capsys):
    words = ["--macs", "0.6", "--params", "0.5", "--image-size", "12", "--out", "m.safetensors"]
    assert main(["prune", factory, *words]) == 0
    shown = capsys.readouterr().out
    for name, limit in (("macs", 60), ("params", 50)):
        share = float(re.search(rf"^{name}: ([\d.]+)% left, .* (below|at) the limit", shown, re.M).group(1))
        assert share <= limit
    assert (
        hfp.load_pruned("m.safetensors", __import__("own_networks").small()).metadata["budget"]
        == "macs=0.6, params=0.5"
    )


WORDS = ["--ratio", "0.5", "--image-size", "12", "--out", "m.safetensors"]


def test_an_existing_file_is_replaced_by_force_alone(factory, tmp_path, capsys):
    file = tmp_path / "m.safetensors"
    file.write_text("mine")
    assert "m.safetensors exists; give another name, or --force to replace it" in refused(
        capsys, "prune", factory, *WORDS
    )
    assert file.read_text() == "mine"
    assert main(["prune", factory, *WORDS, "--force"]) == 0
    assert file.stat().st_size > 1000
    picture = tmp_path / "m.png"
    picture.write_text("mine")
    words = ["--ratio", "0.5", "--image-size", "12", "--out", "n.safetensors", "--picture", "m.png"]
    assert "m.png exists" in refused(capsys, "prune", factory, *words)


def test_no_exported_file_of_another_model_is_left_beside(factory, tmp_path, capsys):
    exported = tmp_path / "m.onnx"
    exported.write_text("of an earlier model")
    message = refused(capsys, "prune", factory, *WORDS)
    assert "m.onnx exists, and would not be of the new model; give another name, or --force to delete it" in message
    assert main(["prune", factory, *WORDS, "--force"]) == 0
    assert not exported.exists()


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="there is no folder here that refuses files")
def test_a_target_that_can_t_be_written_is_noticed_before_any_work(factory, monkeypatch, capsys):
    monkeypatch.setattr("hfp.commands.prune.full_model", None)  # would be called by any work
    message = refused(capsys, "prune", factory, "--macs", "0.5", "--out", "/proc/m.safetensors")
    assert "m.safetensors can't be written into /proc" in message


def test_a_disk_that_fills_up_is_one_line(factory, monkeypatch, capsys):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hfp.commands.prune.save_pruned", full)
    assert main(["prune", factory, *WORDS]) == 2
    assert "m.safetensors can't be written: No space left on device" in capsys.readouterr().err


def test_a_latency_that_is_not_met_is_written_and_said(factory, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("hfp.pruning.planning.latencies", lambda models, inputs: [1.0, 0.4])
    monkeypatch.setattr("hfp.pruning.prune.latencies", lambda models, inputs: [1.0, 0.7])
    words = ["--latency", "0.5", "--image-size", "12", "--out", "m.safetensors"]
    assert main(["prune", factory, *words]) == 1
    streams = capsys.readouterr()
    assert "latency: 70.00% left, 20 points ABOVE the limit" in streams.out
    assert streams.err == (
        "hfp prune: the limit on latency is NOT met: 70.0% is left, 20.0 points too much; m.safetensors is written all "
        "the same\n"
    )
    assert (tmp_path / "m.safetensors").exists()
    assert main(["prune", factory, *words, "--json", "--force"]) == 1
    assert json.loads(capsys.readouterr().out)["met"] is False


def test_fine_tuning_augments_only_when_asked_to_and_says_a_loss_of_accuracy(factory, images, monkeypatch, capsys):
    augmented, shares = [], iter([0.9, 0.8, 0.6] * 2)
    monkeypatch.setattr("hfp.commands.prune.accuracy", lambda *_: next(shares))
    monkeypatch.setattr("hfp.commands.prune.finetune", lambda *_, **options: augmented.append(options["augmented"]))
    words = ["--ratio", "0.5", "--data", "imagefolder", "--data-root", str(images), "--image-size", "12", "--force"]
    words += ["--finetune", "3", "--out", "m.safetensors"]
    assert main(["prune", factory, *words]) == 0
    shown = capsys.readouterr().out
    assert "accuracy, fine-tuned: 60.0%" in shown
    assert "WARNING: fine-tuning lowered accuracy from 80.0% to 60.0%" in shown
    assert hfp.load_pruned("m.safetensors", __import__("own_networks").small()).metadata["fine-tuned epochs"] == 3
    assert main(["prune", factory, *words, "--augment"]) == 0
    assert augmented == [False, True]


def test_a_model_that_can_t_be_trained_is_not_pruned_first(factory, images, tmp_path, capsys):
    with open(tmp_path / "own_networks.py", "a") as file:
        file.write("def frozen():\n    return small().requires_grad_(False)\n")
    words = ["--data", "imagefolder", "--data-root", str(images), "--finetune", "1", "--out", "m.safetensors"]
    error = refused(capsys, "prune", "own_networks:frozen", "--ratio", "0.5", *words)
    assert "no parameter of own_networks:frozen requires gradients, so that --finetune would train nothing" in error


@pytest.mark.parametrize("force", [False, True])
def test_a_file_that_another_command_has_written_meanwhile_stays(factory, tmp_path, monkeypatch, capsys, force):
    def pruned(*arguments, **options):
        for name in ("m.safetensors", "m-2.onnx"):
            (tmp_path / name).write_text("of another command")
        return hfp.prune(*arguments, **options)

    monkeypatch.setattr("hfp.commands.prune.prune", pruned)
    words = ["prune", factory, "--ratio", "0.5", "--image-size", "12", "--out", "m.safetensors", "--json"]
    assert main([*words, "--force"] if force else words) == 0
    shown = capsys.readouterr()
    name = "m.safetensors" if force else "m-3.safetensors"
    assert json.loads(shown.out)["out"] == name
    assert hfp.load_pruned(name, __import__("own_networks").small()).metadata["budget"] == "ratio=0.5"
    assert (tmp_path / "m-2.onnx").exists()
    if not force:
        assert (tmp_path / "m.safetensors").read_text() == "of another command"
        assert "m.safetensors was written by another program meanwhile, and stays; this is m-3" in shown.err


@pytest.mark.parametrize("force", [False, True])
def test_a_picture_and_an_export_that_another_command_has_written_meanwhile_stay(
    factory, tmp_path, monkeypatch, capsys, force
):
    def pruned(*arguments, **options):
        for name in ("layers.png", "m.onnx"):
            (tmp_path / name).write_text("of another command")
        return hfp.prune(*arguments, **options)

    monkeypatch.setattr("hfp.commands.prune.prune", pruned)
    words = ["prune", factory, "--ratio", "0.5", "--image-size", "12", "--out", "m.safetensors"]
    assert main([*words, "--picture", "layers.png", *["--force"] * force]) == 0
    there = sorted(path.name for path in tmp_path.iterdir() if path.suffix in (".safetensors", ".onnx", ".png"))
    if force:
        assert there == ["layers.png", "m.safetensors"]
        assert (tmp_path / "layers.png").read_bytes().startswith(b"\x89PNG")
    else:
        assert there == ["layers-2.png", "layers.png", "m-2.safetensors", "m.onnx"]
        assert {(tmp_path / name).read_text() for name in ("layers.png", "m.onnx")} == {"of another command"}
        said = capsys.readouterr().err
        assert "m.onnx was written by another program meanwhile, and stays; this is m-2.safetensors" in said
        assert "layers.png was written by another program meanwhile, and stays; this is layers-2.png" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--in-channels", "1"], "--in-channels 1 is not the 3 of the images of imagefolder"),
        (["--no-repair", "--batches", "3"], "--batches is for criteria that use data"),
        (["--no-repair", "--batch-size", "8"], "--batch-size is for criteria that use data"),
        (["--lr", "0.1"], "--learning-rate is for --finetune EPOCHS"),
        (["--augment"], "--augment is for --finetune EPOCHS"),
        (["--num-classes", "3"], "--num-classes does not reach own_networks:small"),
        (["--finetune", "-1"], "--finetune is a number of epochs, at least 0, not -1"),
        (["--finetune", "1", "--lr", "0"], "--learning-rate is a number above 0 and at most 1,000,000, not 0.0"),
        (
            ["--finetune", "1", "--lr", "1e300"],
            r"--learning-rate is a number above 0 and at most 1,000,000, not 1e\+300",
        ),
        (["--batch-size", "1" + 28 * "0"], "--batch-size is at most 1,000,000, not 1000"),
    ],
)
def test_no_option_is_ignored_beside_data(factory, images, words, message, capsys):
    given = ["--ratio", "0.5", "--data", "imagefolder", "--data-root", str(images), "--out", "m.safetensors"]
    assert re.search(message, refused(capsys, "prune", factory, *given, *words))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["resnet"], "required"),
        (
            ["resnet18", "--out", "m.safetensors"],
            "one of --macs, --params, --bytes, --latency, --ratio is required",
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
        (["resnet8", "--macs", "0.5", "--round-to", "0", "--out", "m"], "--round-to is at least 1, not 0"),
        (
            ["resnet8", "--macs", "0.5", "--min-channels", "-1", "--out", "m"],
            "--min-channels is at least 1, not -1",
        ),
        (["resnet8", "--macs", "0.5", "--steps", "0", "--out", "m"], "--steps is at least 1, not 0"),
        (["resnet8", "--macs", "0.5", "--data", "imagefolder", "--out", "m"], "--data-root|data-root|PATH"),
        (["resnet8", "--macs", "0.5", "--image-size", "0", "--out", "m"], "--image-size is at least 1, not 0"),
        (
            ["resnet8", "--macs", "0.5", "--image-size", "100000", "--out", "m"],
            "--image-size is at most 99,999, not 100000",
        ),
        (
            ["resnet8", "--macs", "0.5", "--data", "digits", "--num-classes", "3", "--out", "m"],
            "--num-classes 3 is less than the 10 classes of digits",
        ),
        (["resnet8", "--macs", "0.5", "--picture", "m.svg", "--out", "m"], "m.svg must end with .png"),
        (["resnet8", "--macs", "0.001", "--image-size", "8", "--out", "m"], "is the least that is reachable"),
        (["resnet8", "--macs", "0.5", "--finetune", "1", "--out", "m"], "--finetune needs images"),
        (["resnet8", "--macs", "0.5", "--repair", "bias", "--out", "m"], "--repair needs images"),
        (["resnet8", "--macs", "0.5", "--repair", "magic", "--out", "m"], "invalid choice: 'magic'"),
        (
            ["resnet8", "--macs", "0.5", "--data", "digits", *2 * ["--repair", "bias"], "--out", "m"],
            "--repair bias is given twice; give it once",
        ),
        (
            ["resnet8", "--macs", "0.5", *2 * ["--ignore", "fc"], "--out", "m"],
            "--ignore fc is given twice; give it once",
        ),
        (
            ["resnet8", "--macs", "0.5", "--data", "digits", "--repair", "bias", "--no-repair", "--out", "m"],
            "--repair and --no-repair exclude each other; give one",
        ),
        (
            ["resnet8", "--macs", "0.5", "--data", "digits", "--no-repair", "--batches", "3", "--out", "m"],
            "--batches is for criteria that use data, --ranking measured and repairs; none is asked for",
        ),
        (["resnet8", "--macs", "0.5", "--importance", "taylor", "--out", "m"], "scores with images: --data NAME"),
        (["resnet8", "--macs", "0.5", "--ranking", "measured", "--out", "m"], "losses on images: --data NAME"),
        (["resnet8", "--macs", "0.5", "--data-root", ".", "--out", "m"], "--data-root needs images"),
        (["resnet8", "--macs", "0.5", "--batches", "4", "--out", "m"], "--batches needs images"),
        (
            ["resnet8", "--macs", "0.5", "--data", "digits", "--image-size", "32", "--out", "m"],
            "--image-size 32 is not the 8",
        ),
        (
            ["resnet8", "--macs", "0.5", "--data", "digits", "--in-channels", "3", "--out", "m"],
            "--in-channels 3 is not the 1",
        ),
        (
            ["resnet18", "--macs", "0.5", "--pretrained", "--weights", "f", "--out", "m"],
            "both say where the weights come",
        ),
        (["resnet8", "--macs", "0.5", "--ratio", "0.5", "--out", "m"], "ratio says how many channels go"),
        (["resnet8", "--macs", "0.5", "--tolerance", "2", "--out", "m"], "tolerance is a share of its limit"),
        (["resnet8", "--macs", "0.5", "--picture", "m", "--out", "m"], "are different files"),
        (["resnet8", "--macs", "0.5", "--importance", "best", "--out", "m"], "best"),
        (["resnet8", "--macs", "0.5", "--device", "gpu", "--out", "m"], "there is no device 'gpu'.*cpu, cuda"),
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


def test_no_file_that_is_read_is_replaced(factory, tmp_path, capsys):
    weights = tmp_path / "weights.pth"
    torch.save(importlib.import_module("own_networks").small().state_dict(), weights)
    before = weights.read_bytes()
    words = ["--weights", "weights.pth", "--out", "./weights.pth", "--force"]
    assert "holds the --weights" in refused(capsys, "prune", factory, "--macs", "0.5", "--image-size", "16", *words)
    assert weights.read_bytes() == before


def test_a_folder_in_the_way_is_refused_before_anything_is_written(factory, tmp_path, capsys):
    (tmp_path / "m.onnx").mkdir()
    assert "m.onnx is a folder" in refused(capsys, "prune", factory, *WORDS, "--force")
    assert not (tmp_path / "m.safetensors").exists()


def test_inspect_ignores_no_option_and_replaces_no_file_of_a_model(factory, tmp_path, capsys):
    assert main(["prune", "test_resnet", "--image-size", "32", "--macs", "0.5", "--out", "named.safetensors"]) == 0
    assert main(["prune", factory, "--image-size", "16", "--macs", "0.5", "--out", "own.safetensors"]) == 0
    (tmp_path / "folder.html").mkdir()
    for words, message in (
        (["named.safetensors", "--model", "resnet18"], "named.safetensors names its full model; leave --model out"),
        (
            ["own.safetensors", "--image-size", "9"],
            "--image-size counts with the full model, which own.safetensors does not name",
        ),
        (["own.safetensors", "--image-size", "0"], "--image-size is at least 1, not 0"),
        (["own.safetensors", "--picture", "own.safetensors"], "own.safetensors must end with .png"),
        (["own.safetensors", "--html", "own.safetensors"], "own.safetensors must end with .html"),
        ([factory, "--html", "folder.html"], "folder.html is a folder"),
        ([factory, "--image-size", "-1"], "--image-size is at least 1, not -1"),
    ):
        assert message in refused(capsys, "inspect", *words)


def test_inspect_says_what_a_function_of_inputs_raised(factory, tmp_path, capsys):
    with (tmp_path / "own_networks.py").open("a") as file:
        file.write("def breaks():\n    raise RuntimeError('no images today')\n")
    said = refused(capsys, "inspect", factory, "--inputs", "own_networks:breaks")
    assert "--inputs own_networks:breaks can't be called: RuntimeError: no images today" in said
    said = refused(capsys, "inspect", factory, "--inputs", "own_networks:nothing")
    assert "no function 'own_networks:nothing'" in said
    assert "expected module:function" in said


def test_inspect_shows_what_is_coupled_in_a_model(factory, tmp_path, capsys):
    assert main(["inspect", factory, "--image-size", "16", "--html", "page.html"]) == 0
    shown = capsys.readouterr().out
    assert "2 coupled groups" in shown
    assert "left alone: 5: it is an output of the model" in shown
    assert (tmp_path / "page.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert main(["inspect", factory, "--image-size", "16", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [(group["name"], group["channels"]) for group in document["groups"]] == [("0", 12), ("2", 8)]
    assert document["layers"][2]["reason"] == "it is an output of the model"


def test_inspect_draws_what_is_left_of_a_pruned_model(factory, tmp_path, capsys):
    assert main(["prune", factory, "--image-size", "16", "--macs", "0.5", "--out", "small.safetensors"]) == 0
    said = refused(capsys, "inspect", "small.safetensors", "--html", "page.html")
    assert "does not name its full model; give --model" in said
    assert main(["inspect", "small.safetensors", "--model", factory, "--html", "page.html"]) == 0
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    left = hfp.load_pruned("small.safetensors", importlib.import_module("own_networks").small()).model
    assert f" left: 3 → {left[0].out_channels}" in page
    assert f" left: {left[2].in_channels} → {left[2].out_channels}" in page
    assert page.count('class="left"') == page.count('class="bar"')


def test_inspect_calls_a_model_with_what_a_function_gives(factory, tmp_path, capsys):
    with (tmp_path / "own_networks.py").open("a") as file:
        file.write("def images():\n    return torch.zeros(2, 3, 9, 9)\n")
    macs = []
    for given in (["--inputs", "own_networks:images"], ["--image-size", "9"]):
        assert main(["inspect", factory, "--json", *given]) == 0
        macs.append(json.loads(capsys.readouterr().out)["macs"])
    assert macs[0] == macs[1]
    assert "gave a int" in refused(capsys, "inspect", factory, "--inputs", "own_networks:number")


def test_inspect_refuses_options_that_do_not_fit(factory, tmp_path, capsys):
    assert "--model is for files of pruned" in refused(capsys, "inspect", "resnet8", "--model", "resnet8")
    assert "there is no folder" in refused(capsys, "inspect", "resnet8", "--html", str(tmp_path / "no" / "page.html"))
    (tmp_path / "file").write_text("text")
    assert "--html" not in refused(capsys, "inspect", str(tmp_path / "file"), "--html", "page.html")
    assert "no model of this name" in refused(capsys, "inspect", "resnet9")


def test_inspect_refuses_what_is_no_pruned_model(tmp_path, capsys):
    assert "none.safetensors" in refused(capsys, "inspect", str(tmp_path / "none.safetensors"))
    (tmp_path / "text").write_text("nothing")
    assert "text" in refused(capsys, "inspect", str(tmp_path / "text"))


def test_inspect_shows_no_escape_codes_and_no_markup_of_a_file(tmp_path, capsys):
    layer = torch.nn.Sequential(OrderedDict({"[bold]a\x1b[2J": torch.nn.Linear(2, 3)}))
    note = {"note\x1b]0;title\x07": "text\x1b[31m", "[/]": ["\x1b[2J"]}
    path = save_pruned(Pruned(layer, IndexMap.identity(layer), note), tmp_path / "m.safetensors")
    assert main(["inspect", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "\x1b" not in shown and "\x07" not in shown
    assert "[bold]a\\x1b[2J" in shown and "text\\x1b[31m" in shown


def test_an_error_about_a_file_has_no_escape_codes(tmp_path, capsys):
    path = tmp_path / "m.safetensors"
    save_file({"w": torch.zeros(1)}, path, metadata={"hfp": json.dumps({"format": "\x1b[2J"})})
    assert main(["inspect", str(path)]) == 2
    assert "\x1b" not in capsys.readouterr().err


OWN = """
def raises():
    return {}["key"]
"""


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (OWN, r"own_broken:raises can't be called without arguments: KeyError: 'key' \(own_broken.py, line 3\)"),
        ("1 / 0\n", r"own_broken can't be imported: ZeroDivisionError: division by zero \(own_broken.py, line 1\)"),
        ("def (\n", r"own_broken can't be imported: SyntaxError: .*own_broken.py, line 1"),
    ],
)
def test_code_of_ones_own_that_fails_is_one_line(text, reason, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_broken.py").write_text(text)
    sys.modules.pop("own_broken", None)
    importlib.invalidate_caches()
    said = refused(capsys, "prune", "own_broken:raises", "--macs", "0.5", "--out", "m")
    assert re.search(reason, said)


def test_a_file_of_one_of_hfps_models_is_inspected_with_its_name_whatever_its_images_and_classes(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    made = ["--in-channels", "1", "--image-size", "8", "--num-classes", "7"]
    assert main(["prune", "resnet8", "--ratio", "0.5", *made, "--out", "m.safetensors", "--json"]) == 0
    costs = json.loads(capsys.readouterr().out)["costs"]
    assert main(["inspect", "m.safetensors", "--model", "resnet8", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["costs"]["macs"] == costs["macs"]
