"""What can be said without torch is said before torch is loaded."""

import inspect
import json
import subprocess
import sys
from importlib.metadata import version

import pytest
import torch

from hfp import importance
from hfp.commands.cli import COMMANDS, build_parser
from hfp.data import datasets, load_dataset
from hfp.data.load import IMAGES
from hfp.devices import KINDS, check_device, working_device
from hfp.errors import InputError, unknown
from hfp.importance.options import criterion_options
from hfp.methods import create_method, methods
from hfp.methods.interface.sources import check_option_names, outline
from hfp.models import create, models
from hfp.models.names import OWN, check_model_name
from hfp.settings import settings_of

ANSWERS = [
    ["--help"],
    *([command, "--help"] for command in COMMANDS),
    ["rnu"],
    ["run", "--bach-size", "3"],
    ["run", "--rounds", "x"],
    ["run", "--alpha", "0"],
    ["run", "--method", "ca-hpf"],
    ["run", "--dataset", "digist"],
    ["run", "--model", "resnet9"],
    ["run", "--model", "mobilenet_v33"],
    ["run", "--option", "wamrup=2"],
    ["run", "--method", "ca-hfp-paper", "--option", "ebss=true"],
    ["run", "--method", "fedavg", "--option", "lr=2"],
    ["run", "--threads", "0"],
    ["run", "--threads", "1025"],
    ["compare", "--option", "fjord.temprature=2"],
    ["compare", "--methods", "fedavgg"],
    ["compare", "--option", "fedproxx.mu=1"],
    ["prune", "resnet18", "--macs", "0.5", "--out", "x", "--importance", "l3"],
    ["prune", "resnet19", "--macs", "0.5", "--out", "x"],
    ["prune", "resnet18", "--macs", "0.5", "--out", "x", "--criterion", "l3"],
    ["prune", "timm:resnet19", "--macs", "0.5", "--out", "x"],
    ["prune", "resnet8", "--macs", "0.5", "--out", "x", "--device", "cdua"],
    ["prune", "resnet8", "--macs", "0.5", "--out", "x", "--weights", "nope.pth"],
    ["prune", "resnet8", "--macs", "0.5", "--out", "x", "--data", "digist"],
    ["prune", "resnet8", "--macs", "0.5", "--out", "x", "--data", "imagefolder", "--data-root", "nope"],
    ["prune", "resnet8", "--macs", "0.5", "--out", "x", "--data", "digits", "--image-size", "99"],
    ["prune", "resnet8", "--macs", "0.5", "--out", "x", "--data", "cifar10", "--in-channels", "1"],
    ["prune", "nope:model", "--macs", "0.5", "--out", "x"],
    ["run", "--device", "cdua"],
    ["run", "--weights", "nope.pth"],
    ["run", "--dataset", "imagefolder", "--data-root", "nope"],
    ["run", "--image-size", "99"],
    ["run", "--model", "nope:model"],
    ["run", "--model", "torchvision:resnet19"],
    ["run", "--resume", "nope"],
    ["run", "--resume", "empty"],
    ["compare", "nope.toml"],
    ["compare", "--file", "nope.toml"],
    ["compare", "--file", "method.toml"],
    ["compare", "--file", "field.toml"],
    ["compare", "--file", "model.toml"],
    ["compare", "--device", "cdua"],
    ["inspect", "nope"],
    ["inspect", "nope.safetensors"],
    ["inspect", "resnet19"],
    ["inspect", "nope:model"],
    ["inspect", "empty"],
    ["inspect", "field.toml", "--model", "resnet19"],
    ["predict", "nope", "x.jpg"],
    ["predict", "empty", "x.jpg"],
    ["predict", "field.toml", "x.jpg"],
    ["predict", "field.toml", "empty"],
    ["extract", "nope", "--out", "x"],
    ["extract", "empty", "--out", "x"],
    ["methods"],
    ["methods", "ca-hfp-paper"],
    ["methods", "fjord", "--json"],
    ["methods", "ca-hpf"],
    ["flower", "pu"],
    ["flower", "up", "--run", "nope"],
    ["run", "--dataset", "imagefolder"],
    ["compare", "--dataset", "imagefolder"],
    ["prune", "resnet8", "--macs", "0.5", "--out", "m.safetensors", "--data", "imagefolder"],
    ["run", "--clients-file", "nowhere.csv"],
    ["criteria", "--json"],
    ["criteria", "group-fisher"],
    ["criteria", "empirical-fisher", "--json"],
    ["criteria", "l3"],
]
FILES = {
    "method.toml": '[compare]\nmethods = ["fedavgg"]\n',
    "field.toml": "[experiment]\nround = 3\n",
    "model.toml": '[experiment]\nmodel = "resnet19"\n',
}

SCRIPT = """
import contextlib, io, json, sys
from hfp.commands.cli import main
found = []
for words in json.loads(sys.argv[1]):
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            status = main(words)
        except SystemExit as end:
            status = end.code
    found.append((status, out.getvalue(), sorted({"torch", "timm", "torchvision"} & sys.modules.keys())))
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("answers")
    (folder / "empty").mkdir()
    for name, text in FILES.items():
        (folder / name).write_text(text)
    words = [sys.executable, "-c", SCRIPT, json.dumps(ANSWERS)]
    done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=folder)
    return {tuple(words): answer for words, answer in zip(ANSWERS, json.loads(done.stdout), strict=True)}


@pytest.mark.parametrize("words", ANSWERS, ids=" ".join)
def test_help_and_refusals_do_not_wait_for_torch(answers, words):
    status, text, heavy = answers[tuple(words)]
    assert heavy == []
    listed = words[0] in ("methods", "criteria") and words[-1] not in ("ca-hpf", "l3")
    helped = "--help" in words or listed
    assert status == (0 if helped else 2)
    assert helped or (text.count("\n") == 1 and "Traceback" not in text)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_in_whole_sentences_with_the_default_and_the_range_behind_them(command):
    subparsers = build_parser([command])._subparsers._group_actions[0]
    for action in subparsers.choices[command]._actions:
        if action.dest != "help":
            sentence, _, more = action.help.partition(" [")
            assert sentence[0].isupper(), action.help
            assert sentence.endswith("."), action.help
            assert not more or more.endswith("]"), action.help


def test_python_dash_m_hfp_is_the_command():
    done = subprocess.run([sys.executable, "-m", "hfp", "rnu"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "hfp: unknown command 'rnu'; did you mean run or prune?\n")


@pytest.mark.parametrize("name", ["resnet8", "resnet18.a1_in1k", "tf_efficientnet_b0_ap", "shufflenet_v2_x0_5"])
def test_names_that_a_library_knows_pass_before_it_is_loaded(name):
    check_model_name(name)
    create._resolve(name)


def test_names_that_the_libraries_list_pass():
    for name in [*models(), *create.timm.list_models()[::7], *create._torchvision_names()[::3]]:
        check_model_name(name)
    assert models() == OWN


def test_a_name_that_no_library_has_is_refused_with_the_nearest():
    with pytest.raises(InputError, match="unknown model 'mobilenetv3_smal_100'; did you mean mobilenetv3_small_100"):
        check_model_name("mobilenetv3_smal_100")


def test_a_suggestion_has_a_name_once():
    assert str(unknown("model", "resnet19", ["resnet18", "resnet8", "resnet18"])).count("resnet18") == 1


def test_the_images_of_data_sets_of_one_size_are_as_the_table_says():
    digits = load_dataset("digits")
    assert IMAGES["digits"] == digits.shape[:2]
    assert {name: IMAGES[name] for name in ("fmnist", "cifar10", "cifar100")} == {
        "fmnist": (1, 28), "cifar10": (3, 32), "cifar100": (3, 32),
    }  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_devices_that_pytorch_knows_pass(kind):
    check_device(kind)
    if kind != "npu":  # of a package of its own
        assert torch.device(f"{kind}:0").type in (kind, "npu")


@pytest.mark.parametrize("name", ["cuda:01", "cuda:128", "cuda:300", "cuda:", "cuda:-1", "meta:0"])
def test_devices_that_pytorch_does_not_know_or_takes_for_others_are_refused(name):
    with pytest.raises(InputError, match=f"device must be one that computes, .*; found '{name}'"):
        check_device(name)


def test_a_device_without_float64_is_refused():
    with pytest.raises(InputError, match="device 'mps' has no float64, in which sums are taken here; use cpu"):
        check_device("mps")


@pytest.mark.parametrize("name", ["cuda:99", "meta", "nonsense"])
def test_a_device_that_does_not_compute_here_is_told_in_one_line(name):
    with pytest.raises(InputError, match=f"device '{name}' .*; use cpu$"):
        working_device(name)


def test_a_device_that_a_package_adds_passes(monkeypatch):
    monkeypatch.setattr("hfp.devices.entry_points", lambda group: [group])
    check_device("mine:1")


@pytest.mark.parametrize("method", methods(), ids=lambda method: method.name)
def test_an_unknown_option_gets_the_same_words_before_and_after_the_method_is_loaded(method):
    check_option_names(method.name, settings_of(method))
    for option in ("wamrup", "tempreature", "zzzz"):
        with pytest.raises(InputError) as later:
            create_method(method.name, **{option: 1})
        with pytest.raises(InputError) as early:
            check_option_names(method.name, [option])
        assert str(early.value) == str(later.value)


@pytest.mark.parametrize("method", methods(), ids=lambda method: method.name)
def test_the_outline_of_a_method_says_what_the_method_declares(method):
    found = outline(method.name)
    facts = ("name", "source", "summary")
    assert [getattr(found, fact) for fact in facts] == [getattr(method, fact) for fact in facts]
    assert settings_of(found) == settings_of(method)


@pytest.mark.parametrize("name", importance.names())
def test_the_options_of_a_criterion_are_those_that_it_takes(name):
    parameters = inspect.signature(importance.factory_of(name)).parameters.values()
    taken = {one.name: one.default for one in parameters if one.default is not one.empty}
    assert {option: declared.default for option, declared in criterion_options(name).items()} == taken


@pytest.mark.parametrize("name", importance.names())
def test_a_criterion_is_where_the_table_says(name):
    assert callable(importance.factory_of(name))


def test_data_sets_are_where_the_table_says():
    from importlib import import_module

    from hfp.data import load

    for name in datasets():
        if name in load._OWN:
            assert callable(getattr(import_module(load._OWN[name]), f"load_{name}"))


def test_the_package_says_its_version_without_loading_torch():
    code = "import sys, hfp; print(hfp.__version__, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [version("hfp"), "False"]
