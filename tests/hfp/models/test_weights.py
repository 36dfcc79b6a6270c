"""Weights files: states arrive whatever they are wrapped in, and everything else is one line."""

from __future__ import annotations

import argparse
import re
import socket
import struct
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

import hfp
from hfp.errors import InputError
from hfp.models import create_model
from hfp.models.pretrained import pretrained_model
from hfp.models.source import classifier, full_model
from hfp.models.weights import load_weights, read_weights


def network(classes: int = 4) -> nn.Module:
    return create_model("resnet8", num_classes=classes, in_channels=1, width=0.25)


def assert_same_state(first: nn.Module, second: nn.Module) -> None:
    for name, tensor in second.state_dict().items():
        assert torch.equal(first.state_dict()[name], tensor), name


WRAPPED = {
    "a state": lambda state: state,
    "under state_dict": lambda state: {"state_dict": state, "epoch": 3},
    "under model": lambda state: {"model": state, "optimizer": {}},
    "of DataParallel": lambda state: {f"module.{name}": tensor for name, tensor in state.items()},
    "of DataParallel, compiled": lambda state: {f"_orig_mod.module.{name}": tensor for name, tensor in state.items()},
    "of both": lambda state: {"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}},
}


@pytest.mark.parametrize("wrapped", WRAPPED)
def test_a_state_that_torch_saved_is_read(wrapped: str, tmp_path: Path) -> None:
    model, other = network(), network()
    torch.save(WRAPPED[wrapped](model.state_dict()), tmp_path / "weights.pth")
    assert load_weights(other, tmp_path / "weights.pth") == f"the weights in {tmp_path / 'weights.pth'}"
    assert_same_state(other, model)


@pytest.mark.parametrize("wrapper", ["module", "_orig_mod"])
def test_a_model_whose_own_names_begin_like_a_wrappers_gets_its_own_state(wrapper: str, tmp_path: Path) -> None:
    model, other = (nn.ModuleDict({wrapper: network()}) for _ in range(2))
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    load_weights(other, tmp_path / "weights.pth")
    assert_same_state(other, model)


def test_a_name_in_capitals_is_one_of_torch_too(tmp_path: Path) -> None:
    model = network()
    torch.save(model.state_dict(), tmp_path / "weights.PT", _use_new_zipfile_serialization=False)
    assert read_weights(tmp_path / "weights.PT").keys() == model.state_dict().keys()


def test_a_file_that_the_system_refuses_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="can't be read: File name too long|there is no such file"):
        read_weights("x" * 5000)
    (tmp_path / "weights").write_bytes(b"any")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(InputError, match="weights can't be read: Permission denied"):
        read_weights(tmp_path / "weights")


def test_a_state_of_torch_is_known_whatever_the_file_is_called(tmp_path: Path) -> None:
    model = network()
    torch.save(model.state_dict(), tmp_path / "weights")
    assert read_weights(tmp_path / "weights").keys() == model.state_dict().keys()


class Hostile:
    def __reduce__(self):
        return exec, ("raise SystemError('the file ran code')",)


@pytest.mark.parametrize(
    "content",
    [network(), {"state_dict": network().state_dict(), "args": argparse.Namespace(lr=1)}, Hostile()],
    ids=["a module", "a namespace beside it", "hostile"],
)
def test_a_pickle_of_other_things_is_not_read_but_explained(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(InputError, match=r"is a pickle of other things than tensors.*weights_only=False") as caught:
        read_weights(tmp_path / "weights.pth")
    assert "\n" not in str(caught.value)


def saved_whole(path: Path, kind: str) -> None:
    model = network()
    if kind == "archive":
        torch.jit.trace(model.eval(), torch.zeros(2, 1, 8, 8)).save(path)
        return
    state = {"state_dict": model.state_dict(), "options": argparse.Namespace(epochs=3)}
    whole = {"model": model, "dict of a model": {"model": model}, "dict of a state": state}
    torch.save(whole[kind], path)


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("kind", ["model", "dict of a model", "dict of a state", "archive"])
def test_what_is_not_read_is_converted_by_the_command_that_is_told(kind: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    saved_whole(Path("mine.pth"), kind)
    with pytest.raises(InputError, match="which (could run any|holds) code, so it is not read") as caught:
        read_weights("mine.pth")
    code = re.search(r'python -c "(.*)"$', str(caught.value))
    assert code is not None
    exec(code[1], {})
    assert read_weights("weights.pth").keys() == network().state_dict().keys()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("weights.pth", b"", "is damaged or was not written by torch.save"),
        ("weights.pth", b"hello world", "is damaged or was not written by torch.save"),
        ("weights.pth", b"<html>404</html>", "is damaged or was not written by torch.save"),
        ("weights.safetensors", b"hello world", "is no safetensors file"),
        (
            "fm.py",
            b"hello world",
            r"nor one of torch.save, which ends in .bin, .ckpt, .pt, .pth, .tar or is an archive",
        ),
    ],
)
def test_a_damaged_file_is_one_line(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read_weights(tmp_path / name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", [TypeError, AssertionError, struct.error])
def test_whatever_the_reader_fails_with_is_one_line(damage, tmp_path: Path, monkeypatch) -> None:
    def load(*_: object, **__: object) -> None:
        raise damage("it is odd")

    torch.save(network().state_dict(), tmp_path / "weights.pth")
    monkeypatch.setattr(torch, "load", load)
    with pytest.raises(InputError, match="is damaged or was not written by torch.save"):
        read_weights(tmp_path / "weights.pth")


def test_a_file_cut_short_is_one_line(tmp_path: Path) -> None:
    torch.save(network().state_dict(), tmp_path / "weights.pth")
    (tmp_path / "weights.pth").write_bytes((tmp_path / "weights.pth").read_bytes()[:-100])
    with pytest.raises(InputError, match="is damaged or was not written") as caught:
        read_weights(tmp_path / "weights.pth")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [{"epoch": 3}, [torch.zeros(3)], torch.zeros(3), {1: torch.zeros(3)}, {}])
def test_a_file_without_a_state_says_how_to_save_one(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(InputError, match=r"holds no state_dict.*torch.save\(model.state_dict\(\), FILE\)"):
        read_weights(tmp_path / "weights.pth")


def test_a_pruned_model_is_named_as_such_where_full_weights_are_wanted(tmp_path: Path) -> None:
    result = hfp.prune(network(), torch.randn(2, 1, 8, 8), hfp.Budget(macs=0.5))
    hfp.save_pruned(result, tmp_path / "half.safetensors")
    with pytest.raises(InputError, match="holds a pruned model, and full weights are wanted"):
        load_weights(network(), tmp_path / "half.safetensors")


def test_the_first_names_that_differ_are_given_and_nothing_is_loaded(tmp_path: Path) -> None:
    model = network()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = {f"encoder.{name}": tensor for name, tensor in network().state_dict().items()}
    save_file(state, tmp_path / "weights.safetensors")
    count = len(before) - 3
    with pytest.raises(InputError, match=rf"lacks stem.0.weight, .* and {count} more and it also holds enc") as caught:
        load_weights(model, tmp_path / "weights.safetensors")
    assert "\n" not in str(caught.value)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_shapes_that_differ_are_named(tmp_path: Path) -> None:
    torch.save(create_model("resnet8", 4, 1, width=0.5).state_dict(), tmp_path / "weights.pth")
    with pytest.raises(InputError, match=r"stem.0.weight has shape \[8, 1, 3, 3\], not \[4, 1, 3, 3\]; .* more"):
        load_weights(network(), tmp_path / "weights.pth")


def test_a_federated_model_keeps_its_own_classifier_where_the_files_has_other_classes(tmp_path: Path) -> None:
    full, mine = network(classes=10), network(classes=4)
    own = mine.classifier.weight.clone()
    torch.save(full.state_dict(), tmp_path / "weights.pth")
    with pytest.raises(InputError, match=r"classifier.weight has shape \[10, 16\], not \[4, 16\]"):
        load_weights(mine, tmp_path / "weights.pth")
    said = load_weights(mine, tmp_path / "weights.pth", new_classifier=True)
    assert said.endswith("classifier.bias, classifier.weight new, for another number of classes")
    assert torch.equal(mine.stem[0].weight, full.stem[0].weight)
    assert torch.equal(mine.classifier.weight, own)


def test_without_a_network_pretrained_weights_are_one_line_at_once(monkeypatch, tmp_path: Path) -> None:
    def unreachable(*_: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(socket, "getaddrinfo", unreachable)
    monkeypatch.setattr("hfp.models.pretrained._cached", lambda repository: False)
    for name in ("HF_ENDPOINT", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    for make in (full_model, lambda name, **options: classifier(name, 10, 3, **options)):
        with pytest.raises(
            InputError, match="resnet18 can't be downloaded .*hf download timm/.*--weights FILE"
        ) as caught:
            make("resnet18", pretrained=True)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("error", "said"),
    [(RuntimeError("checksum differs\nsecond line"), "checksum differs"), (TimeoutError(), "TimeoutError")],
)
def test_a_download_that_fails_is_one_line(error, said, monkeypatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("hfp.models.pretrained._cached", lambda repository: True)
    monkeypatch.setattr(timm, "create_model", fail)
    with pytest.raises(InputError, match=rf"can't be downloaded \({said}\)") as caught:
        pretrained_model("resnet18")
    assert "\n" not in str(caught.value)


def test_models_without_pretrained_weights_are_named() -> None:
    with pytest.raises(InputError, match="timm has no pretrained weights of botnet50ts_256; give --weights FILE"):
        pretrained_model("botnet50ts_256")
    with pytest.raises(InputError, match="pretrained weights are timm's.*of this name is timm:vgg16"):
        classifier("vgg16", 10, 3, pretrained=True)
