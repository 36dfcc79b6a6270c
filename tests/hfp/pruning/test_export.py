"""Exports to ONNX."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import Tensor, nn

from hfp.errors import InputError
from hfp.pruning import export
from hfp.pruning.export import export_onnx

pytest.importorskip("onnxruntime", reason="the onnx extra is not installed")
X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Heads(nn.Module):
    """Two heads in a dict and the place of the largest value: floats and integers, of several shapes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk, self.boxes, self.classes = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        y = self.trunk(x).relu()
        found = self.classes(y)
        return {"boxes": self.boxes(y), "classes": found}, found.argmax(1)


def test_all_outputs_are_compared(tmp_path):
    model, level = Heads().eval(), logging.getLogger("torch.onnx").level
    assert export_onnx(model, X, tmp_path / "m.onnx") < 1e-5
    assert logging.getLogger("torch.onnx").level == level
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


def test_a_file_that_gives_other_outputs_is_not_written(tmp_path, monkeypatch):
    exported = export._export

    def wrong(model, inputs, path):
        with torch.no_grad():
            model.boxes.bias.add_(1)
            exported(model, inputs, path)
            model.boxes.bias.sub_(1)

    monkeypatch.setattr(export, "_export", wrong)
    (tmp_path / "m.onnx").write_text("an earlier one")
    with pytest.raises(InputError, match="output 0 of ONNX Runtime differs from the model's by 1"):
        export_onnx(Heads().eval(), X, tmp_path / "m.onnx")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("m.onnx", "an earlier one")]


class Paired(nn.Module):
    """Two tensors by keyword, in another order than callers give them, and a switch."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = nn.Linear(8, 4), nn.Linear(8, 4)

    def forward(self, first: Tensor, second: Tensor, plain: bool = False) -> Tensor:
        y = self.one(first) - 2 * self.two(second)
        return y if plain else y.softmax(-1)


@pytest.mark.parametrize(
    "inputs",
    [{"second": X[0, 0], "plain": True, "first": X[1, 1]}, (X[1, 1], X[0, 0], True)],
    ids=["keywords", "arguments"],
)
def test_a_model_that_takes_several_arguments_is_exported_for_their_sizes(tmp_path, inputs):
    assert export_onnx(Paired().eval(), inputs, tmp_path / "m.onnx") < 1e-5
    assert (tmp_path / "m.onnx").exists()


class Transposed(nn.Module):
    """Reshapes what is transposed, as attention does with its heads."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        heads = self.one(x).view(3, 8, 4, 2).transpose(1, 2)
        scores = torch.matmul(heads, heads.transpose(3, 2)).softmax(-1)
        found = torch.matmul(scores, heads).transpose(1, 2).contiguous()
        return self.two(found.reshape(3, 8, -1).contiguous()) + y


def test_a_reshape_of_transposed_heads_is_exported(tmp_path):
    assert export_onnx(Transposed().eval(), (X[0], X[1]), tmp_path / "m.onnx") < 1e-5


def test_what_keeps_a_model_from_being_exported_is_named(tmp_path):
    class Choosing(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(InputError, match="Choosing can't be exported to ONNX: GuardOn.*: Could not guard"):
        export_onnx(Choosing(), torch.randn(2, 3), tmp_path / "model.onnx")
